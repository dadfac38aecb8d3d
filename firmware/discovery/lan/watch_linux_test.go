package lan

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/cloudrest/cloudrest/tools/netns"
)

func TestMain(m *testing.M) {
	netns.Roles(map[string]netns.Role{"watch": func(ctx context.Context, dev string, _ <-chan string, out io.Writer) error {
		Watch(ctx, func() ([]Interface, error) { return Interfaces([]string{dev}) }, func(ins []Interface) {
			v4 := []netip.Prefix{}
			for _, in := range ins {
				for _, p := range in.Prefixes {
					if p.Addr().Is4() {
						v4 = append(v4, p)
					}
				}
			}
			fmt.Fprintln(out, v4)
		})
		return nil
	}})
	os.Exit(m.Run())
}

// The kernel's own word, in a private network: the test binary runs inside one.
func TestWatchKernel(t *testing.T) {
	lab := netns.Test(t)
	a, err := lab.Space("a")
	if err != nil {
		t.Fatal(err)
	}
	b, err := lab.Space("b")
	if err != nil {
		t.Fatal(err)
	}
	if err := lab.Join(netns.Port{Space: a, Dev: "a0", Addrs: []string{"10.92.0.1/24"}}, netns.Port{Space: b, Dev: "b0", Addrs: []string{"10.92.0.2/24"}}); err != nil {
		t.Fatal(err)
	}
	act, err := a.Actor("watch", "a0")
	if err != nil {
		t.Fatal(err)
	}
	expect := func(want string) {
		t.Helper()
		if _, err := act.Expect(want, 20*time.Second); err != nil {
			t.Error(err)
		}
	}
	expect("[10.92.0.1/24]")
	if err := a.AddAddr("a0", "10.92.0.9/24"); err != nil {
		t.Fatal(err)
	}
	expect("[10.92.0.1/24 10.92.0.9/24]")
	if err := a.Down("a0"); err != nil {
		t.Fatal(err)
	}
	expect("[]")
	if err := act.Stop(20 * time.Second); err != nil {
		t.Errorf("%v: %s", err, act.Log())
	}
}
