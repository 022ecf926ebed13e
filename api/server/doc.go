// Package server serves the REST API: routes, authentication, permissions, limits, errors as problem+json, server-sent
// events, file and tar downloads, and the OpenAPI document, which comes from the Go types of package api.
//
// It owns HTTP and nothing behind it: what the API does is done by a [Backend], which the appliance's assembly
// implements. It is the only package that knows gin and huma.
package server
