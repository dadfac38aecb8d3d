package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/cloudrest/cloudrest/firmware/internal/admit"
	"github.com/cloudrest/cloudrest/firmware/internal/origin"
	"github.com/cloudrest/cloudrest/tether"
)

// refuseFor answers for the origin when there is no answer of it to pass on. What
// clients read says what they can do about it and nothing about the inside.
func (x *exchange) refuseFor(err error) {
	switch {
	case errors.Is(err, errTooSlow): // net/http takes the interrupted read for the client's end
		x.refuse(http.StatusRequestTimeout, errTooSlow.Error())
	case x.r.Context().Err() != nil || errors.Is(err, context.Canceled):
		panic(http.ErrAbortHandler) // the client is gone
	case errors.Is(err, admit.ErrQueueFull), errors.Is(err, admit.ErrWait), errors.Is(err, admit.ErrTooManyStreams):
		x.retryLater()
		x.refuse(http.StatusServiceUnavailable, "device busy")
	case errors.Is(err, origin.ErrClosed):
		x.retryLater()
		x.refuse(http.StatusServiceUnavailable, "device is shutting down")
	case errors.Is(err, origin.ErrTimeout):
		x.log(err)
		x.refuse(http.StatusGatewayTimeout, "the device's service did not answer in time")
	case errors.Is(err, origin.ErrRequestBody):
		var tooLarge *http.MaxBytesError
		switch {
		case errors.Is(err, errTooLarge), errors.As(err, &tooLarge):
			x.refuse(http.StatusRequestEntityTooLarge, errTooLarge.Error())
		default:
			x.refuse(http.StatusBadRequest, "request body cut short or malformed")
		}
	case errors.Is(err, origin.ErrBadRequest):
		x.refuse(http.StatusBadRequest, "request cannot be forwarded")
	case errors.Is(err, origin.ErrUnreachable):
		x.log(err)
		x.refuse(http.StatusBadGateway, "the device's service cannot be reached")
	default:
		x.log(err)
		x.refuse(http.StatusBadGateway, "the device's service gave a bad answer")
	}
}

func (x *exchange) retryLater() {
	secs := int64((x.p.conf.RetryAfter + time.Second - 1) / time.Second)
	x.w.Header()["Retry-After"] = []string{strconv.FormatInt(secs, 10)}
}

// refuse answers with a short body of our own: JSON, or HTML for whoever prefers it.
func (x *exchange) refuse(status int, message string) {
	h := x.w.Header()
	if v := x.r.Header[tether.HeaderSequenceID]; len(v) > 0 {
		h[tether.HeaderSequenceID] = v
	}
	if x.body != nil && !x.body.whole.Load() && x.r.ProtoMajor == 1 || x.body == nil && status == http.StatusRequestTimeout {
		h["Connection"] = []string{"close"} // the rest of the body is not a request
	}
	var body, kind string
	if prefersHTML(x.r.Header["Accept"]) {
		kind = "text/html; charset=utf-8"
		body = fmt.Sprintf("<!doctype html>\n<meta name=viewport content=\"width=device-width\">\n<title>%[1]d %[2]s</title>\n<h1>%[1]d %[2]s</h1>\n<p>%[3]s.\n",
			status, http.StatusText(status), strings.ToUpper(message[:1])+message[1:])
	} else {
		kind = "application/json"
		body = fmt.Sprintf("{\"error\":%d,\"message\":%q}\n", status, message)
	}
	h["Content-Type"] = []string{kind}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	h["Cache-Control"] = []string{"no-store"}
	h["X-Content-Type-Options"] = []string{"nosniff"}
	x.w.WriteHeader(status)
	if x.r.Method != http.MethodHead {
		_, _ = x.w.Write([]byte(body)) // a client that is gone needs no answer
	}
}

// prefersHTML reports whether text/html is asked for, and with at least the weight of
// JSON (RFC 9110 §12.5.1). Programs that say nothing, or */*, get JSON.
func prefersHTML(accept []string) bool {
	html, json := 0.0, 0.0
	for _, line := range accept {
		for part := range strings.SplitSeq(line, ",") {
			kind, params, _ := strings.Cut(part, ";")
			q := 1.0
			for p := range strings.SplitSeq(params, ";") {
				if v, ok := strings.CutPrefix(strings.ToLower(strings.TrimSpace(p)), "q="); ok {
					q, _ = strconv.ParseFloat(v, 64)
				}
			}
			switch strings.ToLower(strings.TrimSpace(kind)) {
			case "text/html", "application/xhtml+xml":
				html = max(html, q)
			case "application/json", "application/*":
				json = max(json, q)
			}
		}
	}
	return html > 0 && html >= json
}

// log reports what is wrong with the origin when it begins and when it changes.
func (x *exchange) log(err error) {
	if x.r.Context().Err() != nil || x.ended() {
		return
	}
	kind := "bad answer from the origin"
	switch {
	case errors.Is(err, origin.ErrRequestBody):
		return // the client's doing
	case errors.Is(err, origin.ErrTimeout):
		kind = "origin too slow"
	case errors.Is(err, origin.ErrUnreachable):
		kind = "origin unreachable"
	}
	if was := x.p.trouble.Swap(&kind); was != nil && *was == kind {
		return
	}
	x.p.log.LogAttrs(x.r.Context(), slog.LevelWarn, kind, slog.Any("err", err), slog.String("id", x.id))
}

// ended reports whether it was Close that ended the exchange.
func (x *exchange) ended() bool {
	x.p.mu.Lock()
	defer x.p.mu.Unlock()
	_, lasts := x.p.streams[x]
	return x.p.closed && lasts
}

func (p *Proxy) recovered() {
	if p.trouble.Swap(nil) != nil {
		p.log.Info("origin answers again")
	}
}
