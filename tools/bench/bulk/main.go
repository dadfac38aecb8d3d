// Command bulk measures small requests beside an endless download on a home uplink. One
// TCP connection carries everything on the tether, so the download must not ruin the rest.
//
// Two network namespaces are joined by a link of 20 Mbit/s and 37 ms round trip with deep
// queues at both ends. Behind it are the real gateway and the sample
// service; before it the real relay and the client. In turn, block by block, the client
// downloads without end and asks for 4 KB again and again,
//
//	separate: straight from the gateway, the download and the GETs on TCP connections of their own,
//	tether:   through the relay, everything on the one tether,
//	alone:    through the relay, without a download.
//
// It needs root.
package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/cloudrest/cloudrest/tools/netns"
)

// The link of the figures published for other tunnels.
const (
	linkRate  = 20_000_000 // bits a second
	oneWay    = 18500 * time.Microsecond
	queue     = 2 << 20 // bytes: deep, 0.8 s at linkRate
	getSize   = 4096
	settle    = 3 * time.Second // for the download to fill the queues
	startWait = 60 * time.Second
)

func main() {
	netns.Roles(map[string]netns.Role{"client": client})
	blocks := flag.Int("blocks", 3, "blocks of each kind")
	gets := flag.Int("gets", 200, "GETs in a block")
	noBBR := flag.Bool("no-bbr", false, "run the gateway where it may not choose BBR, as on most routers")
	asJSON := flag.Bool("json", false, "print JSON")
	flag.Parse()
	if err := run(*blocks, *gets, *noBBR, *asJSON); err != nil {
		fmt.Fprintln(os.Stderr, "bulk:", err)
		if errors.Is(err, netns.ErrUnavailable) {
			fmt.Fprintln(os.Stderr, "bulk: left out: it makes network namespaces, which needs root")
			return
		}
		os.Exit(1)
	}
}

// block is what one block measured.
type block struct {
	Latency  []time.Duration
	Download int64 // bytes of the download during the GETs
	Took     time.Duration
	ID       string // of the device, when it was asked for
	Err      string
}

// client makes one block for each line of JSON it gets.
func client(ctx context.Context, _ string, in <-chan string, out io.Writer) error {
	for line := range in {
		var o order
		if err := json.Unmarshal([]byte(line), &o); err != nil {
			return err
		}
		b := o.run(ctx)
		text, err := json.Marshal(b)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s\n", text)
	}
	return nil
}

type order struct {
	Base, Token string
	Gets        int
	Beside      bool
	ID          bool // only ask for the device's id
}

func (o order) run(ctx context.Context) (b block) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	newClient := func() *http.Client { // a connection of its own
		return &http.Client{Timeout: 0, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	}
	get := func(c *http.Client, path string) (*http.Response, error) {
		r, err := http.NewRequestWithContext(ctx, "GET", o.Base+path, nil)
		if err != nil {
			return nil, err
		}
		if o.Token != "" {
			r.Header.Set("Authorization", "Bearer "+o.Token)
		}
		resp, err := c.Do(r)
		if err == nil && resp.StatusCode != 200 {
			resp.Body.Close()
			return nil, fmt.Errorf("%s: %s", path, resp.Status)
		}
		return resp, err
	}
	if o.ID {
		resp, err := get(newClient(), "/.cloudrest/v1/status")
		if err != nil {
			return block{Err: err.Error()}
		}
		defer resp.Body.Close()
		if err := json.NewDecoder(resp.Body).Decode(&b); err != nil { // {"id": ...}
			b.Err = err.Error()
		}
		return b
	}
	small := newClient()
	one := func() error {
		resp, err := get(small, fmt.Sprintf("/firmware?size=%d", getSize))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return err
	}
	if err := one(); err != nil { // the connection is up
		return block{Err: err.Error()}
	}
	var bulk *counter
	if o.Beside {
		resp, err := get(newClient(), "/firmware?size=8000000000")
		if err != nil {
			return block{Err: err.Error()}
		}
		defer resp.Body.Close()
		bulk = &counter{}
		go io.Copy(bulk, resp.Body)
		time.Sleep(settle)
	}
	begin, first := time.Now(), bulk.bytes()
	for range o.Gets {
		t := time.Now()
		if err := one(); err != nil {
			return block{Err: err.Error()}
		}
		b.Latency = append(b.Latency, time.Since(t))
		time.Sleep(10 * time.Millisecond)
	}
	b.Took, b.Download = time.Since(begin), bulk.bytes()-first
	return b
}

type kind struct {
	name   string
	order  order
	blocks []block
}

func run(blocks, gets int, noBBR, asJSON bool) error {
	if err := netns.Available(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cloudrest-bulk-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "./firmware/cmd/cloudrestd", "./cloud/cmd/cloudrelay", "./tools/cmd/irrigation")
	build.Env, build.Stderr = append(os.Environ(), "CGO_ENABLED=0"), os.Stderr
	if err := build.Run(); err != nil {
		return fmt.Errorf("build the programs (run this from the module's root): %w", err)
	}
	lab := netns.New()
	defer lab.Close()
	home, err := lab.Space("home")
	if err != nil {
		return err
	}
	cloud, err := lab.Space("cloud")
	if err != nil {
		return err
	}
	if err := lab.Wire(netns.Port{Space: home, Dev: "wan0", Addrs: []string{"10.77.0.2/24"}}, netns.Port{Space: cloud, Dev: "eth0", Addrs: []string{"10.77.0.1/24"}},
		netns.Slow{Rate: linkRate, Delay: oneWay, Queue: queue}); err != nil {
		return err
	}
	if err := files(dir); err != nil {
		return err
	}
	for _, s := range []*netns.Space{home, cloud} {
		if _, err := s.Run("mount", "--bind", filepath.Join(dir, "hosts"), "/etc/hosts"); err != nil {
			return err
		}
	}
	out, err := exec.Command(filepath.Join(dir, "cloudrelay"), "token", "--state-dir", filepath.Join(dir, "relay")).Output()
	if err != nil {
		return fmt.Errorf("cloudrelay token: %w", err)
	}
	token := ""
	for word := range strings.FieldsSeq(string(out)) {
		if strings.HasPrefix(word, "crt_") {
			token = word
		}
	}
	gateway := []string{filepath.Join(dir, "cloudrestd"), "--origin", "http://127.0.0.1:8080", "--access", "origin", "--uid-source", "random", "--https", "10.77.0.2:8443", "--http", "off",
		"--state-dir", filepath.Join(dir, "gateway"), "--fifo", filepath.Join(dir, "gateway", "notify"), "--notify-socket", filepath.Join(dir, "gateway", "socket"),
		"--udp-discovery", "off", "--mdns", "off", "--relay", "wss://relay.test:443", "--relay-ca", filepath.Join(dir, "ca.pem")}
	if noBBR { // an ordinary user may not choose a congestion control that is not on the kernel's list
		if err := errors.Join(os.Chmod(dir, 0o755), os.Mkdir(filepath.Join(dir, "gateway"), 0o700), os.Chown(filepath.Join(dir, "gateway"), 65534, 65534)); err != nil {
			return err
		}
		gateway = append([]string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"}, gateway...)
	}
	for _, d := range []struct {
		space *netns.Space
		argv  []string
	}{
		{home, []string{filepath.Join(dir, "irrigation"), "--listen", "127.0.0.1:8080"}},
		{cloud, []string{filepath.Join(dir, "cloudrelay"), "--listen", "10.77.0.1:443", "--tls-cert", filepath.Join(dir, "relay.pem"), "--tls-key",
			filepath.Join(dir, "relay.key"), "--domain", "relay.test", "--state-dir", filepath.Join(dir, "relay"), "--metrics", "off"}},
		{home, gateway},
	} {
		p, err := d.space.Daemon(d.argv[0], d.argv[1:]...)
		if err != nil {
			return err
		}
		defer func() {
			select {
			case <-p.Done():
				fmt.Fprintf(os.Stderr, "bulk: %s ended by itself: %v\n%s\n", d.argv[0], p.Err(), p.Log())
			default:
			}
		}()
	}
	actor, err := cloud.Actor("client", "")
	if err != nil {
		return err
	}
	do := func(o order) (block, error) {
		text, err := json.Marshal(o)
		if err != nil {
			return block{}, err
		}
		if err := actor.Say(string(text)); err != nil {
			return block{}, err
		}
		line, err := actor.Next(10 * time.Minute)
		if err != nil {
			return block{}, err
		}
		var b block
		if err := json.Unmarshal([]byte(line), &b); err != nil {
			return b, err
		}
		if b.Err != "" {
			return b, errors.New(b.Err)
		}
		return b, nil
	}
	direct := order{Base: "https://10.77.0.2:8443", Gets: gets, Beside: true}
	// patiently repeats an order until it works: everything has just been started.
	patiently := func(o order) (b block, err error) {
		for deadline := time.Now().Add(startWait); time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
			if b, err = do(o); err == nil {
				return b, nil
			}
		}
		return b, fmt.Errorf("wait for %s: %w", o.Base, err)
	}
	status, err := patiently(order{Base: direct.Base, ID: true})
	if err != nil {
		return err
	}
	remote := order{Base: "https://relay.test/d/" + status.ID, Token: token, Gets: gets, Beside: true}
	alone := remote
	alone.Beside = false
	once := alone
	once.Gets = 1
	if _, err := patiently(once); err != nil {
		return err
	}
	kinds := []*kind{{name: "separate", order: direct}, {name: "tether", order: remote}, {name: "alone", order: alone}}
	for i := range blocks {
		for _, k := range kinds {
			fmt.Fprintf(os.Stderr, "bulk: block %d of %d, %s\n", i+1, blocks, k.name)
			b, err := do(k.order)
			if err != nil {
				return fmt.Errorf("%s: %w", k.name, err)
			}
			k.blocks = append(k.blocks, b)
			time.Sleep(2 * time.Second) // the queues run empty
		}
	}
	return report(kinds, asJSON)
}

// row is one line of the table; times are the medians over the blocks.
type row struct {
	Kind         string
	P50, P99     time.Duration
	DownloadMbit float64
	P99Ratio     float64 // to separate connections
}

func report(kinds []*kind, asJSON bool) error {
	var rows []row
	for _, k := range kinds {
		var p50, p99 []time.Duration
		var rate []float64
		for _, b := range k.blocks {
			slices.Sort(b.Latency)
			p50 = append(p50, b.Latency[len(b.Latency)/2])
			p99 = append(p99, b.Latency[len(b.Latency)*99/100])
			rate = append(rate, float64(b.Download)*8/b.Took.Seconds()/1e6)
		}
		slices.Sort(p50)
		slices.Sort(p99)
		slices.Sort(rate)
		r := row{Kind: k.name, P50: p50[len(p50)/2], P99: p99[len(p99)/2], DownloadMbit: rate[len(rate)/2]}
		if len(rows) == 0 {
			r.P99Ratio = 1
		} else {
			r.P99Ratio = float64(r.P99) / float64(rows[0].P99)
		}
		rows = append(rows, r)
	}
	if asJSON {
		return json.NewEncoder(os.Stdout).Encode(rows)
	}
	fmt.Printf("4 KB GETs on a link of %d Mbit/s and %v round trip, queues of %d KiB\n", linkRate/1_000_000, 2*oneWay, queue>>10)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "beside a download\tp50\tp99\tp99, ratio\tdownload Mbit/s")
	names := map[string]string{"separate": "yes, separate connections", "tether": "yes, on the same tether", "alone": "no, on the tether"}
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%v\t%v\t%.2f\t%.1f\n", names[r.Kind], r.P50.Round(time.Millisecond/10), r.P99.Round(time.Millisecond/10), r.P99Ratio, r.DownloadMbit)
	}
	return w.Flush()
}

// files writes the hosts file, and the relay's certificate, which is its own CA.
func files(dir string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "relay.test"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"relay.test"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "hosts"), []byte("127.0.0.1 localhost\n10.77.0.1 relay.test\n"), 0o644),
		os.WriteFile(filepath.Join(dir, "ca.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(dir, "relay.pem"), cert, 0o644),
		os.WriteFile(filepath.Join(dir, "relay.key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}
