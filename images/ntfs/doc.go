// Package ntfs reads NTFS file systems over an io.ReaderAt, by www.velocidex.com/golang/go-ntfs.
//
// Alternate data streams show as files "name:stream" beside the file or directory that has them; sparse files and files
// compressed by NTFS are read; symbolic links and junctions show as links, with slashes. Owners and modes are root's, and
// readable: rights of Windows are not translated. The files of the file system itself ($MFT and so on) are hidden.
//
// Refused by name, file by file: what is encrypted (EFS), compressed by Windows' overlay filter, deduplicated or kept in a
// cloud.
//
// What the library leaves out is done here: which blocks of a directory's index are in use, the runs of compressed and of
// much fragmented files, and that what is damaged is an error instead of a shorter directory or file. A panic of the library
// becomes an error, too.
package ntfs
