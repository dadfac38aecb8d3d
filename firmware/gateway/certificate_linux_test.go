package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/netns"
)

func TestMain(m *testing.M) {
	netns.Roles(map[string]netns.Role{"gateway": gatewayRole})
	os.Exit(m.Run())
}

// gatewayRole runs a gateway and dials each address that it is told, as a client which has
// the authority installed.
func gatewayRole(ctx context.Context, dir string, in <-chan string, out io.Writer) error {
	g, err := New(Config{OriginHandler: garden(), StateDir: dir, HTTPS: ":0"})
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }()
	<-g.Ready()
	roots := x509.NewCertPool()
	roots.AddCert(g.cert.CA())
	fmt.Fprintln(out, "ready")
	for addr := range in {
		conf := &tls.Config{RootCAs: roots}
		c, err := tls.Dial("tcp", net.JoinHostPort(addr, strconv.Itoa(int(g.Addresses().HTTPS.Port()))), conf)
		if err == nil {
			c.Close()
			fmt.Fprintln(out, addr, "is good")
		} else {
			fmt.Fprintln(out, addr, err)
		}
	}
	return <-ended
}

// The kernel itself tells of the new address, in a private network.
func TestCertificateFollowsTheKernel(t *testing.T) {
	lab := netns.Test(t)
	a, err := lab.Space("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := lab.Space("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Join(netns.Port{Space: a, Dev: "a0", Addrs: []string{"10.93.0.1/24"}}, netns.Port{Space: b, Dev: "b0", Addrs: []string{"10.93.0.2/24"}}); err != nil {
		t.Fatal(err)
	}
	act, err := a.Actor("gateway", filepath.Join(t.TempDir(), "state"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := act.Expect("ready", patience); err != nil {
		t.Fatal(err)
	}
	ask := func(addr string) (string, error) {
		if err := act.Say(addr); err != nil {
			return "", err
		}
		return act.Expect(addr, patience)
	}
	if got, err := ask("10.93.0.1"); err != nil || got != "10.93.0.1 is good" {
		t.Fatalf("%q, %v", got, err)
	}
	for _, cidr := range []string{"10.93.0.9/24", "fd93::9/64"} {
		if err := a.AddAddr("a0", cidr); err != nil {
			t.Fatal(err)
		}
		addr, _, _ := net.ParseCIDR(cidr)
		want := addr.String() + " is good"
		got := ""
		for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
			if got, err = ask(addr.String()); err != nil {
				t.Fatal(err)
			}
			if got == want {
				break
			}
		}
		if got != want {
			t.Errorf("after %s came: %q, want %q", cidr, got, want)
		}
	}
	if err := act.Stop(patience); err != nil {
		t.Errorf("%v: %s", err, act.Log())
	}
}
