package provision

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strconv"
	"sync"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether/provisioning"
)

// errStranger means that a TLS server is there, but not one of the factory's authority.
var errStranger = errors.New("this is not a station of our factory")

// station is the device's client of the station. It is the client for the maker's service
// on a TLS connection: net/http's own would be 500 KB more for a router.
type station struct {
	client     *origin.Client
	host       string
	token      string
	retryAfter time.Duration // of the last answer

	mu   sync.Mutex
	dial error // why the last connection was not made
}

func newStation(u *url.URL, roots *x509.CertPool, earliest time.Time, token string) (*station, error) {
	if u == nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, errors.New("the station's URL is not https://host[:port]")
	}
	s := &station{host: u.Host, token: token}
	addr, name := hostPort(u), u.Hostname()
	config := &tls.Config{
		MinVersion: tls.VersionTLS12,
		ServerName: name,
		NextProtos: []string{"http/1.1"},
		// VerifyConnection does all that would be done without this, at a time that it chooses.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := verifyStation(cs.PeerCertificates, name, roots, earliest); err != nil {
				return fmt.Errorf("%w: %w", errStranger, err)
			}
			return nil
		},
	}
	var err error
	s.client, err = origin.New(origin.Config{
		ConnectTimeout: connectTimeout, HeadTimeout: answerTimeout, BodyTimeout: answerTimeout, MaxIdle: 1,
		Dial: func(ctx context.Context) (net.Conn, error) {
			c, err := dialTLS(ctx, addr, config)
			s.mu.Lock()
			s.dial = err
			s.mu.Unlock()
			return c, err
		},
	})
	return s, err
}

func dialTLS(ctx context.Context, addr string, config *tls.Config) (net.Conn, error) {
	var d net.Dialer
	plain, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(plain, config)
	if err := c.HandshakeContext(ctx); err != nil {
		plain.Close()
		return nil, err
	}
	return c, nil
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
	q := &origin.Request{Method: method, Target: path, Host: s.host, Payload: body, Fields: []origin.Field{{Name: "Accept", Value: "application/json"}}}
	if body != nil {
		q.Fields = append(q.Fields, origin.Field{Name: "Content-Type", Value: "application/json"})
	}
	if s.token != "" && path != provisioning.InfoPath && path != provisioning.ConfirmPath {
		q.Fields = append(q.Fields, origin.Field{Name: "Authorization", Value: "Bearer " + s.token})
	}
	s.mu.Lock()
	s.dial = nil
	s.mu.Unlock()
	resp, err := s.client.Do(ctx, q)
	if err != nil {
		return 0, nil, s.why(err)
	}
	defer resp.Close()
	for _, f := range resp.Fields {
		if n, err := strconv.Atoi(f.Value); f.Name == "Retry-After" && err == nil && n > 0 {
			s.retryAfter = time.Duration(min(n, 3600)) * time.Second
		}
	}
	answer, err = readAll(resp, provisioning.MaxBody)
	if err != nil {
		return 0, nil, errors.New("the connection broke within the answer")
	}
	return resp.Status, answer, nil
}

// why says in the words of this package what the client says in those of its own trade.
func (s *station) why(err error) error {
	s.mu.Lock()
	dial := s.dial
	s.mu.Unlock()
	switch {
	case dial != nil:
		return dial
	case errors.Is(err, origin.ErrTimeout):
		return errors.New("no answer in time")
	case errors.Is(err, origin.ErrUnreachable):
		return errors.New("the connection broke")
	}
	return err
}

func (s *station) close() { _ = s.client.Close() }

// readAll reads at most max bytes; a longer body is an error.
func readAll(r io.Reader, max int) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, int64(max)+1))
	if err == nil && len(b) > max {
		err = fmt.Errorf("answer over %d bytes", max)
	}
	return b, err
}
