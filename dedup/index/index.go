// Package index is the store's hint of where each chunk lies: a badger database, and the only package that knows badger.
package index
