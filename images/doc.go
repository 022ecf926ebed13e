// Package images owns the formats of disk images: it reads what a virtual machine would see of a raw or qcow2 image, over
// anything that can be read at an offset, with its holes.
//
// A format is told, or follows from a file's name (FormatOf), never from the bytes alone: whoever runs inside a machine with
// a raw disk could write a qcow2 header into it, and have the host read any file as its backing file. For the same reason a
// backing file is opened only by the function that the caller gives (Options.Backing).
//
// qcow2 (docs/interop/qcow2.txt of QEMU) is read by lima-vm/go-qcow2reader, layer by layer; what a header may claim is
// bounded here before the library sees it, and the chain of backing files is followed here. Versions 2 and 3, clusters
// compressed with deflate or Zstandard, and all-zero clusters are read. Refused by name: encrypted images, external data
// files, extended L2 entries, images that QEMU has marked as corrupt. package qemuimg converts these, and VMDK, VHD and VHDX.
//
// It knows neither savesets nor hypervisors, and does not write images.
package images
