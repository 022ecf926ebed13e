// Package filter owns the patterns that leave files out of a backup or pick files of a restore. They are gitignore's,
// read for whole file systems:
//
//   - A pattern without a slash (a trailing one aside) matches names in any directory: *.tmp, node_modules/.
//   - A pattern that starts with a slash matches the absolute path: /var/cache, /home/*/.cache.
//   - A pattern with a slash inside, but not in front, matches the path below each source: build/out.
//   - * matches anything but a slash, ? one character but a slash, [a-z] and [!a-z] one of a set, \ takes the next
//     character as it is.
//   - **/ in front, /**/ inside match any number of directories, none too; /** at the end matches all that is inside.
//   - A trailing slash makes the pattern match directories only.
//   - ! in front takes back what an earlier pattern matched: the last pattern that matches decides. What lies in an
//     excluded directory cannot be taken back, for the directory is never entered.
//   - Empty patterns and those that start with # do nothing; \# and \! stand for the characters themselves.
//
// Paths and patterns are bytes: names that are not UTF-8 match, ? takes one UTF-8 character or one byte that is none.
// Matching keeps no state: one Filter serves many goroutines.
package filter
