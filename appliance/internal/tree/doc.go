// Package tree holds the code to its own shape. It owns layers.txt, the table
// of what each package may import, and the tests that compare the source tree
// with it: imports point down only, a library has one owner, the programs on
// clients stay small, every package says what it is. It has no code of its own
// beyond reading that table.
package tree
