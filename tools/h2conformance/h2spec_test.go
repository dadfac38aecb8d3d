// Package h2conformance runs h2spec, the conformance tests of HTTP/2, against tether/http1.
// It is a module of its own, so that nothing else depends on h2spec.
package h2conformance

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tether/http1"
	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

// patience is how long h2spec waits for a reaction that must come.
const patience = 10 * time.Second

func certificate(t *testing.T) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestH2Spec(t *testing.T) {
	s := &http1.Server{
		TLS: &tls.Config{Certificates: []tls.Certificate{certificate(t)}, NextProtos: []string{"h2"}},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(io.Discard, r.Body)
			io.WriteString(w, "an answer of more bytes than some tests give a window for")
		}),
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != http.ErrServerClosed {
			t.Errorf("Serve = %v", err)
		}
	})
	addr := l.Addr().(*net.TCPAddr)
	conf := &config.Config{Host: addr.IP.String(), Port: addr.Port, Path: "/", Timeout: patience, MaxHeaderLen: 4000, TLS: true, Insecure: true, Strict: true}
	n := 0
	var run func(t *testing.T, g *spec.TestGroup)
	run = func(t *testing.T, g *spec.TestGroup) {
		for _, tc := range append(g.Tests, g.StrictTests...) {
			n++
			t.Run(tc.Desc, func(t *testing.T) {
				t.Parallel()
				conn, err := spec.Dial(conf)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close()
				if err := tc.Run(conf, conn); errors.Is(err, spec.ErrSkipped) {
					t.Skip("h2spec skips it")
				} else if err != nil {
					t.Errorf("%s\n%v", tc.Requirement, err)
				}
			})
		}
		for _, sub := range g.Groups {
			t.Run(sub.Section+" "+sub.Name, func(t *testing.T) { run(t, sub) })
		}
	}
	t.Run("cases", func(t *testing.T) {
		for _, g := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
			t.Run(g.Key, func(t *testing.T) { run(t, g) })
		}
	})
	if n < 140 {
		t.Errorf("%d cases, want all of about 145", n)
	}
}
