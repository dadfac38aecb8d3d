package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cloudrest/cloudrest/firmware/gateway"
	"github.com/cloudrest/cloudrest/tether/provisioning"
	"github.com/cloudrest/cloudrest/tether/settings"
)

// Test fixtures go by the exit codes: one for each reason, told in the help.
func TestProvisionCodes(t *testing.T) {
	var help, errOut bytes.Buffer
	if code := run([]string{"provision", "--help"}, nil, &help, &errOut); code != 0 {
		t.Fatalf("exit %d: %s", code, &errOut)
	}
	text := strings.Join(strings.Fields(help.String()), " ")
	var codes []int
	for _, c := range provisionCodes {
		codes = append(codes, c.code)
		err := provisionExit(&gateway.ProvisionError{Reason: c.reason, Err: errors.New("x")})
		if e, ok := errors.AsType[*settings.ExitError](err); !ok || e.Code != c.code {
			t.Errorf("%s: %v, want exit code %d", c.reason, err, c.code)
		}
		if !strings.Contains(text, c.says) {
			t.Errorf("the help does not tell %d: %s", c.code, c.says)
		}
	}
	slices.Sort(codes)
	if len(slices.Compact(codes)) != len(provisionCodes) || codes[0] <= settings.ExitUsage {
		t.Errorf("codes %v, want different ones above %d", codes, settings.ExitUsage)
	}
	for _, reason := range []provisioning.Reason{provisioning.ReasonUnreachable, provisioning.ReasonToken, provisioning.ReasonConflict, provisioning.ReasonService,
		provisioning.ReasonNetwork, provisioning.ReasonClone, provisioning.ReasonStation, provisioning.ReasonLocked, provisioning.ReasonState,
		provisioning.ReasonBusy, provisioning.ReasonUnknown, provisioning.ReasonMalformed} {
		if _, ok := errors.AsType[*settings.ExitError](provisionExit(&gateway.ProvisionError{Reason: reason, Err: errors.New("x")})); !ok {
			t.Errorf("%s has no exit code of its own", reason)
		}
	}
}

func TestProvisionJSON(t *testing.T) {
	dir := t.TempDir()
	ca := filepath.Join(dir, "ca.pem")
	os.WriteFile(ca, []byte("no certificate"), 0o600)
	var out, errOut bytes.Buffer
	args := []string{"provision", "--factory", "https://127.0.0.1:1", "--factory-ca", ca, "--batch-token-file", filepath.Join(dir, "token"),
		"--uid-source", "random", "--state-dir", filepath.Join(dir, "state"), "--json"}
	code := run(args, nil, &out, &errOut)
	var got struct {
		OK     bool
		Reason string
		Error  string
	}
	if err := json.Unmarshal(out.Bytes(), &got); err != nil || code != 11 || got.OK || got.Reason != "state" || got.Error == "" {
		t.Errorf("exit %d, %q, %v; want 11 and one line of JSON with the reason state", code, &out, err)
	}
	out.Reset()
	if code := run([]string{"provision"}, nil, &out, &errOut); code != settings.ExitUsage {
		t.Errorf("without settings: exit %d, want %d", code, settings.ExitUsage)
	}
}
