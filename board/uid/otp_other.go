//go:build !linux

package uid

import (
	"fmt"

	"github.com/cloudrest/cloudrest/board"
)

// mtdOTP needs Linux.
func (e Env) mtdOTP(string) ([]byte, board.Strength, error) {
	return nil, 0, fmt.Errorf("MTD devices are of Linux: %w", ErrAbsent)
}
