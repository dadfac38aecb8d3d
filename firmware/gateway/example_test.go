package gateway_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"strings"

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

	// What a phone does: it knows the device by its pin.
	phone := &http.Client{Transport: &http.Transport{TLSClientConfig: trust.Client(g.Fingerprint())}}
	// A fresh device lets the first phone in; later somebody has to press its button.
	resp, err := phone.Post(g.URL()+".cloudrest/v1/pair", "application/json", strings.NewReader(`{"name": "my phone"}`))
	if err != nil {
		log.Fatal(err)
	}
	var paired struct{ Token string }
	err = json.NewDecoder(resp.Body).Decode(&paired)
	resp.Body.Close()
	if err != nil {
		log.Fatal(err)
	}
	request, err := http.NewRequest("GET", g.URL()+"zones", nil)
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Authorization", "Bearer "+paired.Token)
	if resp, err = phone.Do(request); err != nil {
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
