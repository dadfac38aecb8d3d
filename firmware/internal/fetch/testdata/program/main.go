// Command program calls fetch.Do, for a test that looks at what is linked then.
package main

import (
	"context"
	"net"
	"net/http"

	"github.com/cloudrest/cloudrest/firmware/internal/fetch"
)

func main() {
	r, err := http.NewRequest("GET", "http://127.0.0.1/", nil)
	if err != nil {
		panic(err)
	}
	fetch.Do(r, func(ctx context.Context) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", "127.0.0.1:80")
	})
}
