package command

import "os/exec"

func shell(line string) []string { return []string{"cmd", "/C", line} }

func ownGroup(*exec.Cmd) {}
