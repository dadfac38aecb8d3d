//go:build !linux

package relay

// RaiseFiles does nothing here: the limit of open files is the operator's.
func RaiseFiles() (uint64, error) { return 0, nil }

func memory() int64 { return fallbackMemory }
