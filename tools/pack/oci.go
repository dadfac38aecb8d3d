package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"
)

// An image holds one static program and no shell; nobody but it writes there. The format
// is that of the OCI image specification 1.1 (image-layout.md, manifest.md, config.md), as
// a tar for "podman load" and "docker load"; a library would bring 30 modules for these
// four JSON objects.
const (
	ociID       = 65532 // user and group; distributions leave it to containers
	ociManifest = "application/vnd.oci.image.manifest.v1+json"
	ociConfig   = "application/vnd.oci.image.config.v1+json"
	ociLayer    = "application/vnd.oci.image.layer.v1.tar+gzip"
	ociIndex    = "application/vnd.oci.image.index.v1+json"
)

type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// platforms by the architecture's name in the file.
var platforms = map[string]struct{ arch, variant string }{
	"amd64": {"amd64", ""}, "arm64": {"arm64", ""}, "armv7": {"arm", "v7"},
}

// images are the programs that containers are made of; each listens on 8443.
var images = map[string]struct {
	state string
	env   []string
}{
	"cloudrelay": {"/var/lib/cloudrelay", []string{"CLOUDREST_LISTEN=:8443"}},
	// A container's network has a new MAC address each time, and what else the hardware
	// shows is the host's: the device's UID is made once and kept with the state.
	"cloudrestd": {"/var/lib/cloudrest", []string{"CLOUDREST_HTTPS=:8443", "CLOUDREST_HTTP=off", "CLOUDREST_UID_SOURCE=random"}},
}

func (r *release) oci(name, arch, program, out string) error {
	platform, ok := platforms[arch]
	if !ok {
		return fmt.Errorf("architecture %q is not known", arch)
	}
	binary, err := os.ReadFile(program)
	if err != nil {
		return err
	}
	image, ok := images[name]
	if !ok {
		return fmt.Errorf("no image is made of %q", name)
	}
	state := image.state
	layer, err := r.tar([]entry{
		{name: "etc/", mode: 0o755}, {name: "etc/passwd", mode: 0o644, body: fmt.Appendf(nil, "%s:x:%d:%[2]d::%s:/sbin/nologin\n", name, ociID, state)},
		{name: "etc/group", mode: 0o644, body: fmt.Appendf(nil, "%s:x:%d:\n", name, ociID)},
		{name: "run/", mode: 0o755}, {name: "run/cloudrest/", mode: 0o755, owner: ociID}, // the gateway's pipe
		{name: "tmp/", mode: 0o1777},
		{name: "usr/", mode: 0o755}, {name: "usr/bin/", mode: 0o755}, {name: "usr/bin/" + name, mode: 0o755, body: binary},
		{name: "var/", mode: 0o755}, {name: "var/lib/", mode: 0o755}, {name: state[1:] + "/", mode: 0o700, owner: ociID},
	})
	if err != nil {
		return err
	}
	var packed bytes.Buffer
	gz, err := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	if err != nil {
		return err
	}
	if _, err := gz.Write(layer); err != nil {
		return err
	}
	if err := gz.Close(); err != nil {
		return err
	}

	var blobs []entry
	blob := func(mediaType string, data []byte) descriptor {
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		blobs = append(blobs, entry{name: "blobs/sha256/" + sum, mode: 0o644, body: data})
		return descriptor{MediaType: mediaType, Digest: "sha256:" + sum, Size: len(data)}
	}
	l := blob(ociLayer, packed.Bytes())
	config := map[string]any{
		"created": r.time.Format(time.RFC3339), "architecture": platform.arch, "os": "linux",
		"config": map[string]any{
			"User": fmt.Sprintf("%d:%[1]d", ociID), "Entrypoint": []string{"/usr/bin/" + name}, "WorkingDir": state,
			"Env":          append([]string{"CLOUDREST_STATE_DIR=" + state}, image.env...),
			"ExposedPorts": map[string]any{"8443/tcp": struct{}{}},
			"Volumes":      map[string]any{state: struct{}{}},
			"Labels": map[string]string{
				"org.opencontainers.image.title": name, "org.opencontainers.image.version": r.name.text,
				"org.opencontainers.image.revision": r.commit, "org.opencontainers.image.licenses": "Apache-2.0",
				"org.opencontainers.image.source": homepage,
			},
		},
		"rootfs":  map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
		"history": []map[string]any{{"created": r.time.Format(time.RFC3339), "created_by": "cloudrest pack"}},
	}
	if platform.variant != "" {
		config["variant"] = platform.variant
	}
	c := blob(ociConfig, marshal(config))
	m := blob(ociManifest, marshal(map[string]any{"schemaVersion": 2, "mediaType": ociManifest, "config": c, "layers": []descriptor{l}}))
	tag := "localhost/" + name + ":latest"
	m.Annotations = map[string]string{"org.opencontainers.image.ref.name": "latest", "io.containerd.image.name": tag}

	all := append([]entry{{name: "blobs/", mode: 0o755}, {name: "blobs/sha256/", mode: 0o755}}, blobs...)
	all = append(all,
		entry{name: "index.json", mode: 0o644, body: marshal(map[string]any{"schemaVersion": 2, "mediaType": ociIndex, "manifests": []descriptor{m}})},
		// Docker before version 25 reads this instead of the index.
		entry{name: "manifest.json", mode: 0o644, body: marshal([]map[string]any{{
			"Config": blobs[1].name, "RepoTags": []string{tag}, "Layers": []string{blobs[0].name}}})},
		entry{name: "oci-layout", mode: 0o644, body: marshal(map[string]string{"imageLayoutVersion": "1.0.0"})},
	)
	archive, err := r.tar(all)
	if err != nil {
		return err
	}
	return os.WriteFile(out, archive, 0o644)
}

// entry is one file of a tar, or a folder if its name ends with a slash.
type entry struct {
	name  string
	mode  fs.FileMode
	owner int
	body  []byte
}

func (r *release) tar(entries []entry) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := &tar.Header{
			Name: e.name, Mode: int64(e.mode), Uid: e.owner, Gid: e.owner, Size: int64(len(e.body)),
			ModTime: r.time, Typeflag: tar.TypeReg, Format: tar.FormatUSTAR,
		}
		if strings.HasSuffix(e.name, "/") {
			h.Typeflag = tar.TypeDir
		}
		if err := w.WriteHeader(h); err != nil {
			return nil, fmt.Errorf("write %s: %w", path.Base(e.name), err)
		}
		if _, err := w.Write(e.body); err != nil {
			return nil, err
		}
	}
	err := w.Close()
	return b.Bytes(), err
}

// marshal is for values of this program, which always marshal; maps come out sorted.
func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("pack: marshal: " + err.Error())
	}
	return text
}
