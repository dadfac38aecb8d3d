//go:build linux

package netns

import (
	"context"
	"fmt"
	"os/exec"
	"time"
)

// AvahiAvailable returns nil when Avahi will work: it names the program that is
// missing (Debian: avahi-daemon, avahi-utils, dbus).
func AvahiAvailable() error {
	if err := Available(); err != nil {
		return err
	}
	for _, tool := range []string{"dbus-daemon", "avahi-daemon", "avahi-browse", "avahi-resolve", "avahi-publish"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("%s is not installed", tool)
		}
	}
	return nil
}

// Avahi starts the system bus and avahi-daemon in the namespace, under the given host
// name, and waits until avahi-browse and its like are answered there.
func (s *Space) Avahi(host string) (*Daemon, error) {
	conf := "[server]\nhost-name=" + host + "\nuse-ipv4=yes\nuse-ipv6=yes\n[publish]\npublish-workstation=no\n"
	if _, err := s.Run("sh", "-c", `mkdir -p /run/dbus /run/avahi-daemon && printf %s "$1" >/run/avahi.conf`, "sh", conf); err != nil {
		return nil, err
	}
	bus, err := s.Daemon("dbus-daemon", "--system", "--nofork", "--nopidfile")
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(stepTime)
	if err := s.until(deadline, bus, "test", "-S", "/run/dbus/system_bus_socket"); err != nil {
		return nil, err
	}
	d, err := s.Daemon("avahi-daemon", "--file", "/run/avahi.conf", "--no-drop-root", "--no-chroot", "--no-rlimits")
	if err != nil {
		return nil, err
	}
	return d, s.until(deadline, d, "avahi-resolve", "--name", host+".local")
}

// until repeats a command until it succeeds, the daemon it asks has ended, or time is up.
func (s *Space) until(deadline time.Time, d *Daemon, name string, arg ...string) error {
	for {
		ctx, cancel := context.WithDeadline(context.Background(), deadline)
		_, err := s.RunContext(ctx, name, arg...)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-d.Done():
			return fmt.Errorf("%s: %s ended: %s", s.Name, d.name, d.Log())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not ready: %w; it says: %s", d.name, err, d.Log())
		}
	}
}
