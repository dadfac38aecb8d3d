//go:build !no_board

package main

import (
	"context"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/board/periph"
)

// The real board. Importing package periph is enough to link its drivers.

func flashUID(ctx context.Context, port string) ([]byte, error) { return periph.FlashUID(ctx, port) }
func openLED(spec string) (board.LED, error)                    { return periph.OpenLED(spec) }

func openButton(spec string) (board.Button, error) {
	b, err := periph.OpenButton(spec)
	if err != nil {
		return nil, err
	}
	return b, nil
}
