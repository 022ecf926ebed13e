// Package disktree shows what is inside a disk as directories for fusefs: one for each partition whose file system is read
// here, and a text in its place for each that is not.
//
//	vda.raw.parts/1-vfat/…
//	vda.raw.parts/2-xfs/…
//	vda.raw.parts/3-LVM2_member.txt
//
// Names that a file system holds are shown as they are. Nothing is read before somebody asks. A damaged file system gives an
// error where it is damaged, and shows the rest.
//
// It does not know savesets: fusefs/savesettree hands it a Disk.
package disktree
