package e2e

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The real MIPS binaries, both byte orders, under emulation: HTTPS, discovery and the
// notifier work, state survives a restart.
func TestMIPS(t *testing.T) {
	for _, arch := range []struct {
		goarch, qemu string
		discovery    bool
	}{
		{"mipsle", "qemu-mipsel-static", true},
		// qemu-user hands IP_PKTINFO (which interface a datagram came in on) to a big-endian
		// program in the byte order of the host, so discovery is not shown here.
		{"mips", "qemu-mips-static", false},
	} {
		t.Run(arch.goarch, func(t *testing.T) {
			qemu, err := exec.LookPath(arch.qemu)
			if err != nil {
				t.Skipf("%s is not installed (make deps)", arch.qemu)
			}
			dir := t.TempDir()
			if err := build(dir, []string{"GOOS=linux", "GOARCH=" + arch.goarch, "GOMIPS=softfloat"}, "./firmware/cmd/cloudrestd"); err != nil {
				t.Fatal(err)
			}
			s := &stack{t: t, dir: dir, originPort: freePort(t), lanPort: freePort(t), fifo: filepath.Join(dir, "notify")}
			s.caFile, _, _ = authority(t, dir, []string{"localhost"})
			s.client = newClient(t, s.caFile)
			s.startOrigin()

			answers, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			defer answers.Close()
			question, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			udpPort := question.LocalAddr().(*net.UDPAddr).Port
			question.Close() // free a moment ago

			run := func() {
				// 24Kc: the core of the AR93xx and MT76xx routers that the firmware is for.
				s.gateway = start(t, "cloudrestd "+arch.goarch, qemu, "-cpu", "24Kc", filepath.Join(dir, "cloudrestd"),
					"--origin", fmt.Sprintf("http://127.0.0.1:%d", s.originPort), "--access", "origin", "--uid-source", "random", "--https", fmt.Sprintf("127.0.0.1:%d", s.lanPort), "--http", "off",
					"--state-dir", filepath.Join(dir, "state"), "--fifo", s.fifo, "--notify-socket", s.fifo+".sock", "--mdns", "off", "--name", "MIPS board",
					"--udp-port", fmt.Sprint(udpPort), "--udp-answer-port", fmt.Sprint(answers.LocalAddr().(*net.UDPAddr).Port))
				eventually(t, "HTTPS on the emulated board", func() error { return s.alive(s.lan("/zones"), s.gateway) })
			}
			run()
			var status struct{ ID string }
			s.getJSON(s.lan("/.cloudrest/v1/status"), &status)

			askForIt := func() error {
				ask, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: udpPort})
				if err != nil {
					return err
				}
				defer ask.Close()
				if _, err := ask.Write([]byte("hello")); err != nil {
					return err
				}
				answers.SetReadDeadline(time.Now().Add(2 * time.Second))
				buf := make([]byte, 1500)
				n, err := answers.Read(buf)
				if err != nil {
					return err
				}
				parts := strings.Split(string(buf[:n]), "||") // as the oldest phone apps do
				if len(parts) != 4 || strings.TrimSpace(parts[0]) != "CloudREST" || strings.TrimSpace(parts[2]) != "MIPS board" ||
					!strings.HasPrefix(strings.TrimSpace(parts[3]), fmt.Sprintf("https://127.0.0.1:%d", s.lanPort)) {
					return &fatalError{fmt.Errorf("answer = %q", buf[:n])}
				}
				return nil
			}
			if arch.discovery {
				eventually(t, "an answer to discovery", askForIt)
			}

			events := s.listen(t, s.lan("/.cloudrest/v1/events"))
			s.notify("from a MIPS board")
			id := events.has(t, "a notification", "from a MIPS board")["from a MIPS board"]

			s.gateway.stop(syscall.SIGTERM)
			run()
			var again struct{ ID string }
			s.getJSON(s.lan("/.cloudrest/v1/status"), &again)
			if again.ID != status.ID {
				t.Errorf("id after the restart = %s, was %s", again.ID, status.ID)
			}
			s.notify("after the restart")
			if got := events.has(t, "events after the restart", "from a MIPS board", "after the restart"); got["from a MIPS board"] != id {
				t.Errorf("the first event is %s now, was %s", got["from a MIPS board"], id)
			}
		})
	}
}
