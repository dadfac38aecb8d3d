package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/tools/sample"
)

func TestArguments(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		says string
	}{
		{[]string{"--help"}, 0, "cloudrestd --origin"},
		{[]string{"--colour"}, 2, "colour"},
		{[]string{"zones"}, 2, "unexpected argument"},
		{[]string{"--listen", "256.0.0.1:99999"}, 1, "listen"},
	} {
		var out, errs bytes.Buffer
		if got := run(c.args, &out, &errs); got != c.code || !strings.Contains(errs.String(), c.says) {
			t.Errorf("%q: exit %d, %q, want %d with %q", c.args, got, errs.String(), c.code, c.says)
		}
	}
}

func TestServe(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	for _, listen := range []string{"127.0.0.1:0", "unix://" + socket} {
		ctx, cancel := context.WithCancel(t.Context())
		out, in := io.Pipe()
		ended := make(chan error)
		go func() { ended <- serve(ctx, listen, sample.New(sample.Config{}), in, slog.New(slog.DiscardHandler)) }()
		line := make([]byte, 200)
		n, _ := out.Read(line)
		where := strings.TrimSpace(strings.TrimPrefix(string(line[:n]), "listening on "))
		client := &http.Client{Transport: &http.Transport{}}
		if strings.HasPrefix(where, "unix://") {
			client.Transport = &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, "unix", socket)
			}}
			where = "http://localhost"
		}
		res, err := client.Get(where + "/events") // a stream must not hold up the end
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("%s: serve = %v, want nil", listen, err)
		}
		res.Body.Close()
	}
}
