package server

import "coffer/api"

// Shapes of inputs and outputs that huma wants: parameters as tagged fields, bodies in a field Body.

// PageInput is the part of a list's input that pages it.
type PageInput struct {
	Before string `query:"before" maxLength:"64" doc:"cursor: items older than this; the 'next' of the page before"`
	Limit  int    `query:"limit" minimum:"1" maximum:"10000" default:"1000" doc:"items in one page"`
}

type noInput struct{}

type noOutput struct{}

type nameInput struct {
	Name string `path:"name" maxLength:"64"`
}

func (in *nameInput) audit() (object, detail string) { return in.Name, "" }

type idInput struct {
	ID string `path:"id" maxLength:"64"`
}

func (in *idInput) audit() (object, detail string) { return in.ID, "" }

// body is an output with a JSON body.
type body[T any] struct{ Body T }

func bodyOf[T any](v T, err error) (*body[T], error) {
	if err != nil {
		return nil, err
	}
	return &body[T]{v}, nil
}

func pageBody[T any](p api.Page[T], err error) (*body[api.Page[T]], error) {
	if p.Items == nil {
		p.Items = []T{}
	}
	return bodyOf(p, err)
}

// listBody keeps the items that keep accepts (nil: all).
func listBody[T any](items []T, err error, keep func(T) bool) (*body[api.Page[T]], error) {
	p := api.Page[T]{Items: []T{}}
	for _, it := range items {
		if keep == nil || keep(it) {
			p.Items = append(p.Items, it)
		}
	}
	return pageBody(p, err)
}
