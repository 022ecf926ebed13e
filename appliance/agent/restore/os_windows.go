package restore

import "coffer/appliance/agent/fsmeta"

// umask: modes are not Windows' own, so that every one is set anew.
func umask() uint32 { return 0o777 }

func owner() (uid, gid uint32) { return 0, 0 }

func makePath(path string) (*fsmeta.Dir, error) { return fsmeta.MakePath(path) }
