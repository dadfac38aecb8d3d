package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// secrets let whoever has them update a device. There is no default: each file is made of
// random numbers, mode 0600.
type secrets struct {
	Hostname    string `json:"hostname"`
	Password    string `json:"password"`
	Certificate string `json:"certificate"` // PEM; piimage knows the device by it
	Key         string `json:"key"`         // PEM, PKCS #8
}

func secretsBeside(image string) string {
	return strings.TrimSuffix(image, filepath.Ext(image)) + ".secrets.json"
}

// openSecrets reads the file, or makes it.
func openSecrets(path, hostname string) (s *secrets, made bool, err error) {
	s, err = readSecrets(path)
	if errors.Is(err, fs.ErrNotExist) {
		s, err = newSecrets(hostname)
		if err != nil {
			return nil, false, err
		}
		return s, true, s.write(path)
	}
	if err == nil && s.Hostname != hostname {
		err = mistake("%s is of %q, not of %q: images with different --hostname cannot update each other; name another file with --secrets", path, s.Hostname, hostname)
	}
	return s, false, err
}

func readSecrets(path string) (*secrets, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var s secrets
	if err := json.Unmarshal(text, &s); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if s.Password == "" || s.Key == "" {
		return nil, fmt.Errorf("read %s: no password or no key in it", path)
	}
	if _, err := s.certificate(); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &s, nil
}

// lifetime of the certificate: nobody is there to renew it, and piimage compares it as a
// whole.
const lifetime = 30 * 365 * 24 * time.Hour

func newSecrets(hostname string) (*secrets, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// A Raspberry Pi begins in 1970 until it has asked the network for the time.
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: hostname}, DNSNames: []string{hostname, hostname + ".local"},
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return &secrets{Hostname: hostname, Password: rand.Text(), Certificate: block("CERTIFICATE", der), Key: block("PRIVATE KEY", pkcs8)}, nil
}

func (s *secrets) certificate() ([]byte, error) {
	block, _ := pem.Decode([]byte(s.Certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, errors.New("no certificate in it")
	}
	return block.Bytes, nil
}

func (s *secrets) write(path string) error {
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	// Never over another one: it would lock its devices out.
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(text, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}
