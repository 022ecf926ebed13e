// Package dedup is the store: it takes chunks and recipe nodes from runs, keeps each once, and reads savesets back.
package dedup
