package provision

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/fetch"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// errStranger means that a TLS server is there, but not one of the factory's authority.
var errStranger = errors.New("this is not a station of our factory")

// errSilent means that the station took a connection and does not answer.
var errSilent = errors.New("no answer in time")

// station is the device's client of the station. It takes a new connection for every
// request: there are three, and what is there already costs a router no space.
type station struct {
	addr       string
	tls        *tls.Config
	base       string
	token      string
	retryAfter time.Duration // of the last answer
}

func newStation(u *url.URL, roots *x509.CertPool, earliest time.Time, token string) (*station, error) {
	if u == nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("the station's URL is not https://host[:port]")
	}
	name, port := u.Hostname(), u.Port()
	if port == "" {
		port = "443"
	}
	return &station{addr: net.JoinHostPort(name, port), base: "https://" + u.Host, token: token, tls: &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: name,
		// VerifyConnection does all that would be done without this, at a time that it chooses.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := verifyStation(cs.PeerCertificates, name, roots, earliest); err != nil {
				return fmt.Errorf("%w: %w", errStranger, err)
			}
			return nil
		},
	}}, nil
}

func (s *station) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	return (&tls.Dialer{Config: s.tls}).DialContext(ctx, "tcp", s.addr)
}

// verifyStation checks the station's certificate for name. A device's clock may be wrong:
// one that is behind the certificate's begin counts as that.
func verifyStation(chain []*x509.Certificate, name string, roots *x509.CertPool, earliest time.Time) error {
	if len(chain) == 0 {
		return errors.New("it shows no certificate")
	}
	intermediates := x509.NewCertPool()
	for _, c := range chain[1:] {
		intermediates.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: intermediates, DNSName: name, CurrentTime: clock(earliest, chain[0].NotBefore),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	return err
}

// ask does one request.
func (s *station) ask(ctx context.Context, method, path string, body []byte) (status int, answer []byte, err error) {
	s.retryAfter = 0
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout+answerTimeout, errSilent)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, s.base+path, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if body != nil {
		r.Header.Set("Content-Type", "application/json")
	}
	if s.token != "" && path != provisioning.InfoPath && path != provisioning.ConfirmPath {
		r.Header.Set("Authorization", "Bearer "+s.token)
	}
	resp, err := fetch.Do(r, s.dial)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	if n, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && n > 0 {
		s.retryAfter = time.Duration(min(n, int(longestRetry/time.Second))) * time.Second
	}
	if answer, err = readAll(resp.Body, provisioning.MaxBody); err != nil {
		return 0, nil, fmt.Errorf("read the answer: %w", err)
	}
	return resp.StatusCode, answer, nil
}

// readAll reads at most max bytes; a longer body is an error.
func readAll(r io.Reader, max int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(max)+1))
	if err == nil && len(b) > max {
		err = fmt.Errorf("answer over %d bytes", max)
	}
	return b, err
}
