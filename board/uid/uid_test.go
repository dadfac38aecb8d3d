package uid

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/cloudrest/cloudrest/board"
)

const (
	flashHex = "d1623c940f2a512d"
	udidFile = "sys/class/spi_master/spi0/spi0.0/machine_udid"
	dtSerial = "proc/device-tree/serial-number"
)

var flashUID = []byte{0xD1, 0x62, 0x3C, 0x94, 0x0F, 0x2A, 0x51, 0x2D}

// tree makes files under a new root. A name that ends with "->" is a link.
func tree(t *testing.T, files map[string]string) Env {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		name, link := strings.CutSuffix(name, "->")
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		var err error
		if link {
			if err = os.MkdirAll(filepath.Join(root, content), 0o700); err == nil {
				err = os.Symlink(filepath.Join(root, content), path)
			}
		} else {
			err = os.WriteFile(path, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return Env{Root: root}
}

// nic is one network interface in a tree.
func nic(files map[string]string, name, mac, assigned, device string) map[string]string {
	dir := "sys/class/net/" + name + "/"
	files[dir+"address"] = mac + "\n"
	files[dir+"addr_assign_type"] = assigned + "\n"
	if device != "" {
		files[dir+"device->"] = device
	}
	return files
}

func TestSources(t *testing.T) {
	const soc, usb = "sys/devices/platform/soc/1f9.eth", "sys/devices/pci0/usb1/1-1/1-1:1.0"
	erased := func(s string, n int) string { return s + strings.Repeat("\xff", n-len(s)) }
	long := strings.Repeat("An ID that goes on and on. ", 4)
	longSum := sha256.Sum256([]byte(strings.TrimSpace(long)))
	macUID := separate("cloudrest-uid-mac-1", []byte{0x24, 0x05, 0x88, 0x01, 0x02, 0x03})
	const mc = "sys/bus/mmc/devices/"
	const cid = "150100344c4e4d4d42036e2c4aafa200"
	cidBytes, _ := hex.DecodeString(cid)

	cases := []struct {
		name, word string
		files      map[string]string
		want       []byte // nil: refused
		strength   board.Strength
		err        error
	}{
		{"paper's file in hex", "machine_udid", map[string]string{udidFile: flashHex + "\n"}, flashUID, board.Hardware, nil},
		{"with colons, upper case", "machine_udid", map[string]string{udidFile: "D1:62:3C:94:0F:2A:51:2D\n\x00"}, flashUID, board.Hardware, nil},
		{"with 0x", "machine_udid", map[string]string{udidFile: "0x" + flashHex}, flashUID, board.Hardware, nil},
		{"another path", "machine_udid=/sys/uid", map[string]string{"sys/uid": flashHex}, flashUID, board.Hardware, nil},
		{"not hex", "machine_udid", map[string]string{udidFile: "SN-2024-77Q"}, []byte("SN-2024-77Q"), board.Hardware, nil},
		{"no file", "machine_udid", nil, nil, 0, ErrAbsent},
		{"empty", "machine_udid", map[string]string{udidFile: "\n"}, nil, 0, ErrAbsent},
		{"zeros", "machine_udid", map[string]string{udidFile: "0000000000000000"}, nil, 0, board.ErrBlank},
		{"FF", "machine_udid", map[string]string{udidFile: "ff:ff:ff:ff:ff:ff:ff:ff"}, nil, 0, board.ErrBlank},
		{"raw FF, long", "machine_udid", map[string]string{udidFile: strings.Repeat("\xff", 256)}, nil, 0, board.ErrBlank},
		{"directory", "machine_udid=/sys", map[string]string{udidFile: "x"}, nil, 0, nil},

		{"Pi", "device-tree", map[string]string{dtSerial: "10000000a1b2c3d4\x00", "proc/device-tree/compatible": "raspberrypi,4-model-b\x00brcm,bcm2711\x00"},
			[]byte{0x10, 0, 0, 0, 0xa1, 0xb2, 0xc3, 0xd4}, board.Hardware, nil},
		{"other board", "device-tree", map[string]string{dtSerial: "7C6A-0042X\x00"}, []byte("7C6A-0042X"), board.Board, nil},
		{"only zeros", "device-tree", map[string]string{dtSerial: "0000000000000000\x00"}, nil, 0, board.ErrBlank},
		{"only NUL", "device-tree", map[string]string{dtSerial: "\x00"}, nil, 0, ErrAbsent},
		{"binary", "device-tree", map[string]string{dtSerial: "\x01\x02abcdefgh\x00"}, nil, 0, nil},
		{"short", "device-tree", map[string]string{dtSerial: "42\x00"}, nil, 0, nil},

		{"factory OTP", "nvmem", map[string]string{"sys/bus/nvmem/devices/mtd0-factory-otp0/nvmem": erased(string(flashUID), 64)}, flashUID, board.Hardware, nil},
		{"erased OTP, then a cell", "nvmem", map[string]string{
			"sys/bus/nvmem/devices/a-factory-otp0/nvmem":           erased("", 64),
			"sys/bus/nvmem/devices/sid0/cells/unique-id@0,0":       string(flashUID),
			"sys/bus/nvmem/devices/sid0/cells/thermal-calib@14,0":  "abcdefghi",
			"sys/bus/nvmem/devices/mtd0-user-otp0/nvmem":           "user data",
			"sys/bus/nvmem/devices/nothing/type":                   "OTP",
			"sys/bus/nvmem/devices/zz/cells/serial-number-old@0,0": "nonsense!",
		}, flashUID, board.Board, nil},
		{"only erased OTP", "nvmem", map[string]string{"sys/bus/nvmem/devices/a-factory-otp0/nvmem": erased("", 4096)}, nil, 0, board.ErrBlank},
		{"named", "nvmem=/sys/x", map[string]string{"sys/x": string(flashUID)}, flashUID, board.Board, nil},
		{"none", "nvmem", nil, nil, 0, ErrAbsent},

		{"no MTD", "mtd-otp", nil, nil, 0, ErrAbsent},
		{"not an MTD device", "mtd-otp", map[string]string{"dev/mtd0": string(flashUID)}, nil, 0, ErrAbsent},

		{"eMMC beside an SD card", "emmc", map[string]string{
			mc + "mmc0:aaaa/type": "SD\n", mc + "mmc0:aaaa/cid": "035344534c3136478040a3b2c1d0e100\n",
			mc + "mmc1:0001/type": "MMC\n", mc + "mmc1:0001/cid": cid + "\n"}, cidBytes, board.Hardware, nil},
		{"only an SD card", "emmc", map[string]string{mc + "mmc0:aaaa/type": "SD\n", mc + "mmc0:aaaa/cid": cid}, nil, 0, ErrAbsent},
		{"the SD card by name", "emmc=mmc0:aaaa", map[string]string{mc + "mmc0:aaaa/type": "SD\n", mc + "mmc0:aaaa/cid": cid}, nil, 0, ErrAbsent},
		{"cut CID", "emmc", map[string]string{mc + "mmc1:0001/type": "MMC\n", mc + "mmc1:0001/cid": cid[:30]}, nil, 0, nil},
		{"none", "emmc", nil, nil, 0, ErrAbsent},

		{"lowest MAC", "mac", nic(nic(nic(nic(nic(nic(nic(map[string]string{},
			"eth1", "24:05:88:01:02:04", "0", soc), "eth0", "24:05:88:01:02:03", "0", soc),
			"wlan1", "00:11:88:00:00:01", "0", usb), // can be unplugged
			"br-lan", "00:11:88:00:00:02", "0", ""), // virtual
			"wlan0", "00:11:88:00:00:03", "1", soc), // random
			"eth2", "02:11:88:00:00:04", "0", soc), // local: made up
			"bad", "00:11:88:00:00:05:06:07", "0", soc), // InfiniBand or so
			macUID, board.Board, nil},
		{"named", "mac=eth0", nic(nic(map[string]string{}, "eth1", "00:05:88:01:02:04", "0", soc), "eth0", "24:05:88:01:02:03", "0", soc), macUID, board.Board, nil},
		{"QEMU's default", "mac", nic(map[string]string{}, "eth0", "52:54:00:12:34:56", "0", soc), nil, 0, ErrAbsent},
		{"zeros", "mac", nic(map[string]string{}, "eth0", "00:00:00:00:00:00", "0", soc), nil, 0, ErrAbsent},

		{"machine ID", "machine-id", map[string]string{"etc/machine-id": "0123456789abcdef0123456789abcdee\n"},
			separate("cloudrest-uid-machine-id-1", []byte("\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xee")), board.Software, nil},
		{"uninitialized", "machine-id", map[string]string{"etc/machine-id": "uninitialized\n"}, nil, 0, nil},
		{"zeros", "machine-id", map[string]string{"etc/machine-id": strings.Repeat("0", 32)}, nil, 0, board.ErrBlank},

		{"maker's file", "file=/etc/uid", map[string]string{"etc/uid": "board 7 of batch 12\n"}, []byte("board 7 of batch 12"), board.Software, nil},
		{"maker's long file", "file=/etc/uid", map[string]string{"etc/uid": long}, longSum[:], board.Software, nil},
		{"missing", "file=/etc/uid", nil, nil, 0, ErrAbsent},
	}
	for _, c := range cases {
		t.Run(c.word+" "+c.name, func(t *testing.T) {
			sources, err := tree(t, c.files).Parse([]string{c.word})
			if err != nil {
				t.Fatal(err)
			}
			got, err := read(t.Context(), sources[0])
			if c.want == nil {
				if err == nil || c.err != nil && !errors.Is(err, c.err) {
					t.Errorf("Read = %x, %v, want error %v", got.Bytes, err, c.err)
				}
				return
			}
			if err != nil || !bytes.Equal(got.Bytes, c.want) || got.Strength != c.strength || got.Source != c.word {
				t.Errorf("Read = %x, %v, %v, want %x (%v)", got.Bytes, got, err, c.want, c.strength)
			}
		})
	}
}

// A pipe in the place of a file must not hold up the start of the daemon.
func TestPipe(t *testing.T) {
	e := tree(t, map[string]string{"etc/x": ""})
	if err := syscall.Mkfifo(e.path("etc/uid"), 0o600); err != nil {
		t.Skipf("no pipes here: %v", err)
	}
	if _, _, err := e.file("/etc/uid"); err == nil {
		t.Error("read a UID from a pipe")
	}
}

func TestOTPSelect(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("MTD is of Linux")
	}
	if got := otpSelect(runtime.GOARCH); got != unix.OTPSELECT {
		t.Errorf("OTPSELECT = %#x, want %#x", got, unix.OTPSELECT)
	}
	for arch, want := range map[string]uintptr{"amd64": 0x80044D0D, "arm": 0x80044D0D, "arm64": 0x80044D0D, "mips": 0x40044D0D, "mipsle": 0x40044D0D} {
		if got := otpSelect(arch); got != want {
			t.Errorf("OTPSELECT on %s = %#x, want %#x", arch, got, want)
		}
	}
}

func TestParse(t *testing.T) {
	flash := Env{Flash: func(context.Context, string) ([]byte, error) { return flashUID, nil }}
	for _, order := range [][]string{nil, DefaultOrder, {"spi=0.0", "file=/etc/uid", "machine-id", "random"}} {
		got, err := flash.Parse(order)
		if order == nil {
			order = DefaultOrder
		}
		if err != nil || len(got) != len(order) {
			t.Fatalf("Parse(%q) = %d sources, %v", order, len(got), err)
		}
		for i, s := range got {
			if s.Name() != order[i] {
				t.Errorf("source %d = %s, want %s", i, s.Name(), order[i])
			}
		}
	}
	for word, say := range map[string]string{
		"": "not known", "tpm": "not known", "spi": "want a port", "file": "want a path", "random=4": "no argument",
		"machine-id=x": "no argument", "mac=": "nothing behind", "machine_udid=": "nothing behind",
	} {
		if _, err := flash.Parse([]string{word}); err == nil || !strings.Contains(err.Error(), say) {
			t.Errorf("Parse(%q) = %v, want %q", word, err, say)
		}
	}
	if _, err := Parse([]string{"spi=0.0"}); err == nil {
		t.Error("spi without a driver: no error")
	}
	_, err := Parse([]string{"tpm", "random", "what"})
	for _, want := range []string{`"tpm"`, `"random": must come last`, `"what"`} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Parse = %v, want %s in it", err, want)
		}
	}
}

func TestReader(t *testing.T) {
	e := tree(t, map[string]string{udidFile: strings.Repeat("f", 16), dtSerial: "10000000a1b2c3d4\x00", "etc/uid": flashHex})
	boom := errors.New("bus is stuck")
	e.Flash = func(context.Context, string) ([]byte, error) { return nil, boom }
	sources, err := e.Parse([]string{"machine_udid", "spi=0.0", "nvmem", "device-tree", "file=/etc/uid", "random"})
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	r := New(sources, slog.New(slog.NewTextHandler(&log, nil)))
	u, err := r.First(t.Context())
	if err != nil || u.Source != "device-tree" {
		t.Fatalf("First = %v, %v, want device-tree", u, err)
	}
	lines := strings.Split(strings.TrimSpace(log.String()), "\n")
	want := [][]string{
		{"passed over", "machine_udid", "blank"}, {"passed over", "spi=0.0", "stuck"},
		{"passed over", "nvmem", "not on this board"}, {"taken", "device-tree", "bytes=8", "strength=board"},
	}
	if len(lines) != len(want) {
		t.Fatalf("log has %d lines, want one for each of %d tries:\n%s", len(lines), len(want), log.String())
	}
	for i, words := range want {
		for _, w := range words {
			if !strings.Contains(lines[i], w) {
				t.Errorf("line %d = %s, want %q in it", i, lines[i], w)
			}
		}
	}
	if strings.Contains(log.String(), "a1b2c3d4") || strings.Contains(log.String(), "161 178") {
		t.Errorf("the log tells the UID: %s", log.String())
	}

	if again, err := r.Again(t.Context(), "device-tree"); err != nil || !bytes.Equal(again.Bytes, u.Bytes) {
		t.Errorf("Again = %v, %v, want the same UID", again, err)
	}
	if _, err := r.Again(t.Context(), "spi=0.0"); !errors.Is(err, boom) {
		t.Errorf("Again(spi=0.0) = %v, want %v", err, boom)
	}
	for _, name := range []string{"random", "mac", ""} {
		if _, err := r.Again(t.Context(), name); !errors.Is(err, ErrAbsent) {
			t.Errorf("Again(%q) = %v, want ErrAbsent", name, err)
		}
	}

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := r.First(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("First of a canceled context = %v, want canceled", err)
	}
	if _, err := New(sources[:3], nil).First(t.Context()); !errors.Is(err, ErrNone) {
		t.Errorf("First of nothing = %v, want ErrNone", err)
	}
}

func TestRandom(t *testing.T) {
	sources, err := tree(t, nil).Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := New(sources, nil)
	a, err := r.First(t.Context())
	if err != nil || a.Source != board.Random || len(a.Bytes) != randomSize || a.Strength != board.Software {
		t.Fatalf("First on an empty board = %v, %v, want random", a, err)
	}
	if b, _ := r.First(t.Context()); bytes.Equal(a.Bytes, b.Bytes) {
		t.Error("two random UIDs are equal")
	}
}

// The path through the flash driver gives the same UID as the kernel's file.
func TestFlash(t *testing.T) {
	e := Env{Flash: func(_ context.Context, port string) ([]byte, error) {
		if port != "0.0" {
			t.Errorf("port = %q, want 0.0", port)
		}
		return flashUID, nil
	}}
	sources, _ := e.Parse([]string{"spi=0.0"})
	u, err := New(sources, nil).First(t.Context())
	if err != nil || !bytes.Equal(u.Bytes, parseText([]byte(flashHex))) || u.Strength != board.Hardware {
		t.Errorf("First = %x, %v, %v", u.Bytes, u, err)
	}
}

// FuzzFile gives what a file could contain to everything that reads one.
func FuzzFile(f *testing.F) {
	for _, s := range []string{flashHex, "D1:62:3C", "0x", "\x00\x00", "10000000a1b2c3d4\x00", strings.Repeat("\xff", 300), "a b c d e f 0 1 2 3 4 5 6 7 8 9"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		serial, err := parseSerial(b)
		if err != nil && len(b) >= board.MinUID && strings.Contains(err.Error(), string(b)) {
			t.Errorf("the error tells the content: %v", err)
		}
		cid, _ := parseHex(b, cidSize)
		for name, got := range map[string][]byte{"text": parseText(b), "OTP": trimErased(b), "serial number": serial, "CID": cid} {
			if len(got) > board.MaxUID {
				t.Errorf("%s of %d bytes, want at most %d", name, len(got), board.MaxUID)
			}
			if len(b) >= board.MinUID && len(got) >= board.MinUID && bytes.Count(b, b[:1]) == len(b) && (board.UID{Bytes: got}).Check() == nil {
				t.Errorf("%s: %d times %#x became a UID", name, len(b), b[0])
			}
		}
	})
}
