package fsmeta

// Mknod refuses: the system makes no device or fifo by the descriptor of its directory.
func (d *Dir) Mknod(string, uint32, uint64) error { return ErrUnsupported }
