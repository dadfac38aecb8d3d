package main

import (
	"bytes"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// What a person sees on a terminal of 100 columns.
func TestTerminal(t *testing.T) {
	var out bytes.Buffer
	s := &screen{Writer: &out, width: 100, color: true}
	answer := func(kind, body string) *http.Response {
		return &http.Response{Status: "200 OK", StatusCode: 200, Proto: "HTTP/2.0", Header: http.Header{"Content-Type": {kind}}, Body: io.NopCloser(strings.NewReader(body))}
	}
	for _, c := range []struct{ kind, body, want string }{
		{"application/json", `{"a":[1,2]}`, "{\n  \"a\": [\n    1,\n    2\n  ]\n}\n"},
		{"application/json", `{"a":"\u001b[2J"}`, "{\n  \"a\": \"\\u001b[2J\"\n}\n"},
		{"text/plain", "a\tb\r\n\x1b]0;title\x07\n", "a    b\n?]0;title?\n"},
		{"text/html", "no newline", "no newline\n"},
		{"", "", ""},
	} {
		out.Reset()
		if err := new(requestOptions).show(answer(c.kind, c.body), s); err != nil || out.String() != c.want {
			t.Errorf("%q is shown as %q, %v, want %q", c.body, out.String(), err, c.want)
		}
	}
	out.Reset()
	if err := new(requestOptions).show(answer("image/png", "\x89PNG"), s); err == nil || !strings.Contains(err.Error(), "-o FILE") || out.Len() > 0 {
		t.Errorf("a picture: %v, %q, want advice and nothing shown", err, out.String())
	}
	out.Reset()
	if err := (&requestOptions{include: true}).show(answer("text/plain", "x"), s); err != nil || !strings.HasPrefix(out.String(), "\x1b[32mHTTP/2.0 200 OK\x1b[0m\n\x1b[2mContent-Type: \x1b[0mtext/plain\n\nx\n") {
		t.Errorf("-i shows %q, %v", out.String(), err)
	}
}

func TestLiveTable(t *testing.T) {
	var out bytes.Buffer
	s := &screen{Writer: &out, width: 60}
	heard := make(chan sighting, 2)
	heard <- sighting{way: "udp", name: "Garden", mac: "02:00:00:00:00:01", url: "https://10.0.0.9/"}
	heard <- sighting{way: "mdns", instance: "Shed", id: gardenID, name: "Shed", url: "https://10.0.0.8/", version: "2"}
	close(heard)
	if n := watchLive(heard, func(sighting) {}, s, time.Minute); n != 2 {
		t.Errorf("%d devices, want 2", n)
	}
	frames := strings.Split(out.String(), "\r\x1b[J")
	want := "NAME    ID        URL                VERSION  FOUND BY  MAC\n" +
		"Garden            https://10.0.0.9/           udp       02:…\n" +
		"Shed    " + gardenID.Short() + "  https://10.0.0.8/  2        mdns\n2 found, done\n"
	if got := frames[len(frames)-1]; got != want {
		t.Errorf("the last picture is\n%s\nwant\n%s", got, want)
	}
	if !strings.HasSuffix(frames[len(frames)-2], "\x1b[4A") {
		t.Errorf("the picture before does not end by going up its 4 lines: %q", frames[len(frames)-2])
	}
}
