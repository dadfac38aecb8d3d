//go:build no_board

package main

import (
	"context"

	"github.com/cloudrest/cloudrest/board"
	"github.com/cloudrest/cloudrest/firmware/internal/features"
)

func flashUID(context.Context, string) ([]byte, error) { return nil, features.Missing("board") }
func openLED(string) (board.LED, error)                { return nil, features.Missing("board") }
func openButton(string) (board.Button, error)          { return nil, features.Missing("board") }
