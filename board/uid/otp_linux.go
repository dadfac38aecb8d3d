package uid

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"syscall"
	"unsafe"

	"github.com/cloudrest/cloudrest/board"
)

const otpFactory = 1 // MTD_OTP_FACTORY of mtd/mtd-abi.h

// otpSelect is OTPSELECT, _IOR('M', 13, int), of mtd/mtd-abi.h. MIPS and PowerPC have three
// direction bits where the others have two (arch/*/include/uapi/asm/ioctl.h).
func otpSelect(arch string) uintptr {
	const intSize, kind, number = 4, 'M', 13
	read := uintptr(2) << 30
	switch arch {
	case "mips", "mipsle", "mips64", "mips64le", "ppc64", "ppc64le":
		read = 2 << 29
	}
	return read | intSize<<16 | kind<<8 | number
}

// mtdOTP reads the factory's one-time programmable area of a flash. Most chips have none.
func (e Env) mtdOTP(device string) ([]byte, board.Strength, error) {
	devices := []string{e.path(device)}
	if device == "" {
		devices, _ = filepath.Glob(e.path("/dev/mtd[0-9]"))
	}
	why := fmt.Errorf("no MTD device: %w", ErrAbsent)
	for _, path := range devices {
		b, err := readOTP(path)
		if b = trimErased(b); err == nil {
			if err = (board.UID{Bytes: b}).Check(); err == nil {
				return b, board.Hardware, nil
			}
		}
		why = err
	}
	return nil, 0, why
}

// readOTP selects the factory area and reads it: selecting changes only this open file.
func readOTP(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, absent(err)
	}
	defer f.Close()
	mode := int32(otpFactory)
	if _, _, errno := syscall.Syscall(syscall.SYS_IOCTL, f.Fd(), otpSelect(runtime.GOARCH), uintptr(unsafe.Pointer(&mode))); errno != 0 {
		err := fmt.Errorf("select the factory OTP of %s: %w", path, errno)
		if errno == syscall.EOPNOTSUPP || errno == syscall.ENOTTY || errno == syscall.EINVAL {
			err = fmt.Errorf("%w: %w", ErrAbsent, err)
		}
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, fmt.Errorf("read the factory OTP of %s: %w", path, err)
	}
	return b, nil
}
