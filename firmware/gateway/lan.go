package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
)

// listen binds addr. Its error says what to do about the usual causes.
func listen(ctx context.Context, key, addr string) (net.Listener, error) {
	l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	switch {
	case err == nil:
		return l, nil
	case errors.Is(err, syscall.EADDRINUSE):
		_, port, _ := net.SplitHostPort(addr)
		return nil, fmt.Errorf("listen on %s: the port is in use: stop the program that has it (ss -ltnp 'sport = :%s' names it; on OpenWrt that is often uhttpd) or choose another with --%s: %w", addr, port, key, err)
	case errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("listen on %s: not permitted: ports below 1024 need root or the capability net_bind_service; or choose another with --%s: %w", addr, key, err)
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		return nil, fmt.Errorf("listen on %s: no interface has this address: give one that the machine has, or :port for all, with --%s: %w", addr, key, err)
	}
	return nil, fmt.Errorf("listen on %s (--%s): %w", addr, key, err)
}

// redirect sends a client from HTTP to HTTPS with 308, which keeps method and body
// (RFC 9110 §15.4.9). port is that of the HTTPS listener.
func redirect(port string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		host = strings.Trim(host, "[]")
		if host == "" || strings.ContainsAny(host, "/\\@?# ") {
			writeError(w, http.StatusBadRequest, "the Host field is missing or not a host")
			return
		}
		target := host
		if port != "443" {
			target = net.JoinHostPort(host, port)
		} else if strings.Contains(host, ":") {
			target = "[" + host + "]"
		}
		path := r.URL.EscapedPath()
		if !strings.HasPrefix(path, "/") {
			path = "/" // CONNECT and "*" have none
		}
		if r.URL.RawQuery != "" {
			path += "?" + r.URL.RawQuery
		}
		w.Header().Set("Connection", "close") // the next request comes by HTTPS
		w.Header().Set("Location", "https://"+target+path)
		w.WriteHeader(http.StatusPermanentRedirect)
	})
}

// baseURL is the https URL of the gateway at addr; the port is left out if it is 443.
func baseURL(addr netip.Addr, port uint16) string {
	addr = addr.Unmap().WithZone("") // a zone means something on this machine only
	host := addr.String()
	if addr.Is6() {
		host = "[" + host + "]"
	}
	if port != 443 {
		host += ":" + strconv.Itoa(int(port))
	}
	return "https://" + host + "/"
}
