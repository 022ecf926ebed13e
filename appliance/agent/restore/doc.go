// Package restore carries out restore orders: it writes a saveset, or what is picked of it, back to the client, or
// compares the two, and pipes a stream into a command.
//
// The planner walks the recipe, makes directories, symlinks and special files, and puts regular files into batches, small
// ones at the beginning and at the end, so that all workers have work; workers fetch a batch's chunks, which come in the
// order of the appliance's containers, each frame once, and write every chunk to all places that want it. A small file is
// made, written, dressed and closed in one go. Directories get their metadata when everything in them is done; hard links
// come after the files, inode flags last of all.
//
// INVARIANT: below the target directory no symlink is ever followed: every name is reached through the descriptor of its
// directory, which was opened without following. Nothing that exists is written into: a file that replaces another is
// written beside it and renamed, so that a restore that breaks off leaves whole files only.
package restore
