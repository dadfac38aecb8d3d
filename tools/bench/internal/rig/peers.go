package rig

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// Names of the roles that Peers has.
const (
	roleOrigin  = "origin"
	roleProxy   = "reverseproxy"
	roleHandler = "handler"
)

// Peers are the roles that the methods of Rig in this file start; a bench adds its own.
func Peers() map[string]Role {
	return map[string]Role{roleOrigin: serveOrigin, roleProxy: serveReverseProxy, roleHandler: serveHandler}
}

// Origin starts a service on plain HTTP whose every answer has size bytes.
func (r *Rig) Origin(ctx context.Context, size int) (*Server, error) {
	return r.Again(ctx, "origin", roleOrigin, strconv.Itoa(size))
}

// ReverseProxy starts what a few lines of Go give: httputil.ReverseProxy with TLS.
func (r *Rig) ReverseProxy(ctx context.Context, origin *Server) (*Server, error) {
	return r.Again(ctx, "httputil.ReverseProxy", roleProxy, "http://"+origin.Addr, r.Cert, r.Key)
}

// Handler starts net/http's server with TLS and the origin's handler in the same process.
func (r *Rig) Handler(ctx context.Context, size int) (*Server, error) {
	return r.Again(ctx, "net/http, in-memory handler", roleHandler, strconv.Itoa(size), r.Cert, r.Key)
}

// PlainPrefix begins the paths whose answers say nothing that concerns caches.
const PlainPrefix = "/plain"

// Answer is the origin's handler: the same size bytes from memory for every request, but
// at /device a descriptor, as the gateway expects it. Below PlainPrefix there is no ETag.
func Answer(size int) http.Handler {
	body := []byte(strings.Repeat("0123456789abcdef", size/16+1))[:size]
	length := strconv.Itoa(size)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Type", "application/json")
		if r.URL.Path == "/device" {
			_, _ = w.Write([]byte(`{"name":"bench"}`))
			return
		}
		h.Set("Content-Length", length)
		if !strings.HasPrefix(r.URL.Path, PlainPrefix) {
			h.Set("Etag", `"0123456789"`)
		}
		_, _ = w.Write(body)
	})
}

func serveOrigin(ctx context.Context, args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return serve(ctx, Answer(size), "", "")
}

func serveHandler(ctx context.Context, args []string) error {
	size, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	return serve(ctx, Answer(size), args[1], args[2])
}

func serveReverseProxy(ctx context.Context, args []string) error {
	target, err := url.Parse(args[0])
	if err != nil {
		return err
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxIdleConnsPerHost = 64
	p := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.SetURL(target)
			r.SetXForwarded()
		},
		Transport: transport,
	}
	return serve(ctx, p, args[1], args[2])
}

// serve prints its address and serves until ctx is done, with TLS if there is a certificate.
func serve(ctx context.Context, h http.Handler, cert, key string) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	s := &http.Server{Handler: h, ReadHeaderTimeout: startWait}
	defer context.AfterFunc(ctx, func() { _ = s.Close() })()
	if cert != "" {
		err = s.ServeTLS(l, cert, key)
	} else {
		err = s.Serve(l)
	}
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// ErrNoNginx means that nginx is not installed.
var ErrNoNginx = errors.New("nginx is not installed (make deps)")

// Nginx starts Debian's nginx as a comparable reverse proxy in a directory of its own.
func (r *Rig) Nginx(ctx context.Context, origin *Server) (*Server, error) {
	return r.nginx(ctx, "nginx", origin, "", "")
}

// NginxCache is Nginx with a cache (proxy_cache) that keeps every answer 200.
func (r *Rig) NginxCache(ctx context.Context, origin *Server) (*Server, error) {
	return r.nginx(ctx, "nginx proxy_cache", origin,
		"proxy_cache_path "+r.Dir+"/cache levels=1:2 keys_zone=bench:8m use_temp_path=off;",
		"proxy_cache bench; proxy_cache_valid 200 1h;")
}

// nginx starts one with lines of its own in the sections http and location.
func (r *Rig) nginx(ctx context.Context, name string, origin *Server, inHTTP, inLocation string) (*Server, error) {
	path, err := exec.LookPath("nginx")
	if err != nil {
		if path, err = exec.LookPath("/usr/sbin/nginx"); err != nil { // not on everybody's PATH
			return nil, ErrNoNginx
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	addr := l.Addr().String()
	if err := l.Close(); err != nil {
		return nil, err
	}
	user := ""
	if os.Getuid() == 0 {
		user = "user root;\n"
	}
	conf := user + fmt.Sprintf(nginxConf, r.Dir, origin.Addr, addr, r.Cert, r.Key, strings.ReplaceAll(name, " ", "-"), inHTTP, inLocation)
	file := filepath.Join(r.Dir, strings.ReplaceAll(name, " ", "-")+".conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, "-c", file, "-p", r.Dir, "-e", "stderr")
	out, err := cmd.StderrPipe()
	if err != nil {
		return nil, err
	}
	s, err := r.start(ctx, name, cmd, out, func(line string) bool { return strings.Contains(line, nginxReady) })
	if err != nil {
		return nil, err
	}
	s.Addr = addr
	return s, nil
}

// nginxReady is what nginx says at level notice once it has its worker.
const nginxReady = "start worker process "

const nginxConf = `daemon off;
worker_processes 1;
pid %[1]s/%[6]s.pid;
error_log stderr notice;
events { worker_connections 1024; }
http {
	access_log off;
	server_tokens off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	keepalive_requests 100000000;
	%[7]s
	upstream origin { server %[2]s; keepalive 64; keepalive_requests 100000000; }
	server {
		listen %[3]s ssl;
		ssl_certificate %[4]s;
		ssl_certificate_key %[5]s;
		ssl_protocols TLSv1.3;
		ssl_conf_command Ciphersuites TLS_AES_128_GCM_SHA256;
		location / {
			%[8]s
			proxy_pass http://origin;
			proxy_http_version 1.1;
			proxy_set_header Connection "";
			proxy_set_header Host $http_host;
			proxy_set_header X-Forwarded-For $remote_addr;
			proxy_set_header X-Forwarded-Proto https;
			proxy_set_header X-Forwarded-Host $http_host;
			proxy_set_header X-Cloudrest-Id $request_id;
			add_header X-Cloudrest-Id $request_id;
		}
	}
}
`
