package gateway_test

import (
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/trust"
)

// A maker's service in Go takes the gateway into its own process: requests reach the
// handler through memory.
func Example() {
	service := http.NewServeMux()
	service.HandleFunc("GET /device", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"name": "Garden", "manufacturer": "ACME", "version": "1.0"}`)
	})
	service.HandleFunc("GET /zones", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `["lawn", "roses"]`)
	})

	state, err := os.MkdirTemp("", "garden")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(state)
	g, err := gateway.New(gateway.Config{
		OriginHandler: service,
		StateDir:      state,         // on a device: a directory that survives restarts
		HTTPS:         "127.0.0.1:0", // on a device: leave it out, for port 443
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	<-g.Ready()

	// What a paired phone does: it knows the device by its pin.
	phone := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Client(g.Fingerprint())}}
	resp, err := phone.Get(g.URL() + "zones")
	if err != nil {
		log.Fatal(err)
	}
	zones, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(resp.StatusCode, string(zones))

	if _, err := g.Notify(ctx, "zones", []byte("lawn is dry")); err != nil {
		log.Fatal(err)
	}
	stop()
	fmt.Println("ended:", <-ended)
	// Output:
	// 200 ["lawn", "roses"]
	// ended: <nil>
}
