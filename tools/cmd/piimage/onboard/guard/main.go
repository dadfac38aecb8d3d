// Command guard runs in the image. After an update it decides whether the new version
// stays: it starts on trial, in a boot that the next boot does not repeat, and stays only
// when the gateway and the maker's service answer. Otherwise guard restarts the device,
// which brings the version before back; so does a power cut, a crash of the kernel or a
// hang that the hardware watchdog ends.
package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudrest/cloudrest/tools/cmd/piimage/bootpart"
)

// done tells gokrazy not to start the program again.
const done = 125

const (
	askEvery = 2 * time.Second
	askLimit = 5 * time.Second
	// goodInARow is how many good answers, askEvery apart, make a version good: a gateway
	// that crashes and is restarted answers now and then.
	goodInARow = 5
)

// What guard prints, for piimage update.
const (
	saysNormal = "state normal"
	saysTrial  = "state trial"
	saysKept   = "state kept"
	saysBack   = "state going-back"
)

func main() {
	patience := flag.Duration("patience", 3*time.Minute, "how long the new version may take to answer")
	status := flag.String("status", "https://127.0.0.1/.cloudrest/v1/status", "where the gateway tells its state")
	flag.Parse()
	if err := run(*patience, *status); err != nil {
		fmt.Println("guard:", err)
		time.Sleep(askEvery)
		os.Exit(1) // gokrazy starts it again
	}
	os.Exit(done)
}

func run(patience time.Duration, status string) error {
	here, err := findDisk()
	if err != nil {
		return err
	}
	if !here.trial {
		fmt.Println(saysNormal)
		return here.tidy()
	}
	fmt.Println(saysTrial)
	if err := wait(patience, status); err != nil {
		fmt.Println(saysBack, "because", err)
		return ask("reboot")
	}
	// Init still believes in the old root, as the kernel was told: for it the other one is
	// the one that runs. One more restart ends that.
	if err := ask("update/switch"); err != nil {
		return err
	}
	fmt.Println(saysKept)
	return ask("reboot")
}

// disk is the disk that runs.
type disk struct {
	boot  string // device file of the boot partition
	trial bool   // the other root runs, for this boot only
}

var rootFlag = regexp.MustCompile(`root=PARTUUID=[0-9a-fA-F-]+/PARTNROFF=([0-9]+)`)

func findDisk() (disk, error) {
	cmdline, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return disk{}, err
	}
	m := rootFlag.FindSubmatch(cmdline)
	if m == nil {
		return disk{}, errors.New("the kernel's command line names no root partition of gokrazy")
	}
	offset, _ := strconv.Atoi(string(m[1]))
	var st syscall.Stat_t
	if err := syscall.Stat("/", &st); err != nil {
		return disk{}, fmt.Errorf("look at /: %w", err)
	}
	major, minor := st.Dev>>8&0xfff, st.Dev&0xff|st.Dev>>12&^0xff
	folder, err := filepath.EvalSymlinks(fmt.Sprintf("/sys/dev/block/%d:%d", major, minor))
	if err != nil {
		return disk{}, fmt.Errorf("find the root partition: %w", err)
	}
	number := func(folder string) int {
		text, _ := os.ReadFile(filepath.Join(folder, "partition"))
		n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		return n
	}
	running := number(folder)
	all, err := filepath.Glob(filepath.Join(filepath.Dir(folder), "*"))
	if err != nil {
		return disk{}, err
	}
	for _, p := range all {
		if number(p) == 1 {
			// Where the trial could not even start, init goes on with the old root.
			trial := strings.Contains(string(cmdline), bootpart.TrialFlag) && running != 1+offset
			return disk{"/dev/" + filepath.Base(p), trial}, nil
		}
	}
	return disk{}, fmt.Errorf("no boot partition beside %s", folder)
}

func (d disk) tidy() error {
	f, err := os.OpenFile(d.boot, os.O_RDWR|syscall.O_SYNC, 0)
	if err != nil {
		return fmt.Errorf("open boot partition: %w", err)
	}
	defer f.Close()
	_, err = bootpart.Tidy(f)
	return err
}

// wait returns nil when everything has answered well for a while.
func wait(patience time.Duration, url string) error {
	// The certificate is the gateway's own and this is loopback.
	client := &http.Client{Timeout: askLimit, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	end := time.Now().Add(patience)
	good := 0
	for {
		err := healthy(client, url)
		if err == nil {
			if good++; good == goodInARow {
				return nil
			}
		} else {
			good = 0
			if time.Now().After(end) {
				return err
			}
		}
		time.Sleep(askEvery)
	}
}

const maxStatus = 1 << 20 // bytes of the gateway's answer

func healthy(client *http.Client, url string) error {
	res, err := client.Get(url)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the gateway answers %s", res.Status)
	}
	var s struct {
		Origin struct{ State string }
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, maxStatus)).Decode(&s); err != nil {
		return fmt.Errorf("read the gateway's status: %w", err)
	}
	if s.Origin.State != "up" {
		return fmt.Errorf("the maker's service is %s", s.Origin.State)
	}
	return nil
}

// ask posts to gokrazy's init on its UNIX socket.
func ask(path string) error {
	password, err := os.ReadFile("/etc/gokr-pw.txt")
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", "/run/gokrazy-http.sock")
	}}}
	req, err := http.NewRequest(http.MethodPost, "http://init/"+path, nil)
	if err != nil {
		return err
	}
	if path == "reboot" {
		// Init ends all services first, this one too: it must not wait for the answer.
		req.URL.RawQuery = "async=true&wait_per_signal=15s"
	}
	req.SetBasicAuth("gokrazy", strings.TrimSpace(string(password)))
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("ask init to %s: %w", path, err)
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(res.Body, maxStatus))
		return fmt.Errorf("ask init to %s: %s: %s", path, res.Status, strings.TrimSpace(string(text)))
	}
	return nil
}
