//go:build no_handler

package origin

import (
	"context"
	"log/slog"
	"net"
	"net/http"
)

const hasLocal = false // Validate refuses Config.Handler

type local struct{}

func newLocal(http.Handler, *slog.Logger) *local      { return nil }
func (*local) dial(context.Context) (net.Conn, error) { return nil, ErrClosed }
func (*local) close()                                 {}
