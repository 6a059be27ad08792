package slot

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"regexp"
	"runtime"
	"time"
)

// A bundle is a tar archive of these files in this order; the signature may be missing.
const (
	manifestName  = "manifest.json"
	signatureName = "manifest.sig" // ed25519, 64 bytes, of the manifest's
	imageName     = "root.img.gz"
)

// bundleFormat is the manifest's first field.
const bundleFormat = "lunar-update-1"

// Bounds of what a bundle may hold.
const (
	maxManifest = 64 << 10
	maxImage    = 64 << 30
)

// ErrBundle means that a file is no bundle, is damaged, or is not signed by whom it should be.
var ErrBundle = errors.New("not a good update")

// Manifest describes a bundle.
type Manifest struct {
	Format       string `json:"format"`
	Version      string `json:"version"`
	Architecture string `json:"architecture"` // as Go names it
	Size         int64  `json:"size"`         // of the slot's image, bytes
	SHA256       string `json:"sha256"`       // of the slot's image, hex
}

var versionForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.+~:_-]{0,63}$`)

// Validate says what is wrong with a manifest, for this machine.
func (m *Manifest) Validate() error {
	sum, err := hex.DecodeString(m.SHA256)
	switch {
	case m.Format != bundleFormat:
		return fmt.Errorf("%w: it is of format %q, this node reads %s", ErrBundle, m.Format, bundleFormat)
	case !versionForm.MatchString(m.Version):
		return fmt.Errorf("%w: its version %q is not one", ErrBundle, m.Version)
	case m.Architecture != runtime.GOARCH:
		return fmt.Errorf("%w: it is for %s, this machine is %s", ErrBundle, m.Architecture, runtime.GOARCH)
	case m.Size <= 0 || m.Size > maxImage || m.Size%sectorSize != 0:
		return fmt.Errorf("%w: its image has %d bytes", ErrBundle, m.Size)
	case err != nil || len(sum) != sha256.Size:
		return fmt.Errorf("%w: its checksum is not one of SHA-256", ErrBundle)
	}
	return nil
}

// bundle is one whose manifest was read and verified; the image follows.
type bundle struct {
	Manifest
	image io.Reader // decompressed; it ends with an error unless size and checksum hold
}

// openBundle reads to where the image begins. With a key the manifest must be signed by its owner.
func openBundle(r io.Reader, key ed25519.PublicKey) (*bundle, error) {
	archive := tar.NewReader(r)
	manifest, err := member(archive, manifestName)
	if err != nil {
		return nil, err
	}
	head, err := archive.Next()
	var signature []byte
	if err == nil && head.Name == signatureName {
		if signature, err = io.ReadAll(io.LimitReader(archive, maxManifest)); err == nil {
			head, err = archive.Next()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: it ends early: %w", ErrBundle, err)
	}
	switch {
	case key != nil && signature == nil:
		return nil, fmt.Errorf("%w: it is not signed, and this node takes signed ones only (%s)", ErrBundle, DefaultKey)
	case key != nil && !ed25519.Verify(key, manifest, signature):
		return nil, fmt.Errorf("%w: its signature is not of the key that this node trusts (%s)", ErrBundle, DefaultKey)
	case head.Name != imageName:
		return nil, fmt.Errorf("%w: %q comes where %s belongs", ErrBundle, head.Name, imageName)
	}
	b := &bundle{}
	strict := json.NewDecoder(bytes.NewReader(manifest))
	strict.DisallowUnknownFields()
	if err := strict.Decode(&b.Manifest); err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBundle, manifestName, err)
	}
	if err := b.Validate(); err != nil {
		return nil, err
	}
	plain, err := gzip.NewReader(archive)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBundle, imageName, err)
	}
	b.image = &checked{r: plain, m: &b.Manifest, sum: sha256.New()}
	return b, nil
}

// member is the next file of an archive, whole; it has to have that name.
func member(archive *tar.Reader, name string) ([]byte, error) {
	head, err := archive.Next()
	if err != nil {
		return nil, fmt.Errorf("%w: it is no tar archive: %w", ErrBundle, err)
	}
	if head.Name != name || head.Size > maxManifest {
		return nil, fmt.Errorf("%w: it begins with %.100q (%d bytes) and not with %s", ErrBundle, head.Name, head.Size, name)
	}
	text, err := io.ReadAll(archive)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrBundle, name, err)
	}
	return text, nil
}

// checked is an image that has to be as the manifest says.
type checked struct {
	r    io.Reader
	m    *Manifest
	sum  hash.Hash
	read int64
}

// Read gives io.EOF only at the end of an image that is whole.
func (c *checked) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.read += int64(n)
	_, _ = c.sum.Write(p[:n])
	switch {
	case c.read > c.m.Size:
		return 0, fmt.Errorf("%w: its image has more than %d bytes", ErrBundle, c.m.Size)
	case err == nil:
		return n, nil
	case !errors.Is(err, io.EOF):
		return n, fmt.Errorf("%w: %s: %w", ErrBundle, imageName, err)
	case c.read < c.m.Size:
		return n, fmt.Errorf("%w: its image ends after %d of %d bytes", ErrBundle, c.read, c.m.Size)
	case hex.EncodeToString(c.sum.Sum(nil)) != c.m.SHA256:
		return n, fmt.Errorf("%w: its image is not the one of the manifest (SHA-256)", ErrBundle)
	}
	return n, io.EOF
}

// Pack makes a bundle of a slot's image, the same bytes each time; a nil key leaves it unsigned.
func Pack(w io.Writer, image *os.File, version string, key ed25519.PrivateKey) (Manifest, error) {
	packed, err := os.CreateTemp("", "lunar-bundle-*")
	if err != nil {
		return Manifest{}, err
	}
	defer func() { _ = packed.Close(); _ = os.Remove(packed.Name()) }()
	sum := sha256.New()
	zip := gzip.NewWriter(packed)
	size, err := io.Copy(io.MultiWriter(sum, zip), image)
	if err == nil {
		err = zip.Close()
	}
	if err != nil {
		return Manifest{}, fmt.Errorf("pack %s: %w", image.Name(), err)
	}
	m := Manifest{bundleFormat, version, runtime.GOARCH, size, hex.EncodeToString(sum.Sum(nil))}
	if err := m.Validate(); err != nil {
		return m, err
	}
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return m, err
	}
	return m, writeBundle(w, append(text, '\n'), key, packed)
}

func writeBundle(w io.Writer, manifest []byte, key ed25519.PrivateKey, image *os.File) error {
	size, err := image.Seek(0, io.SeekEnd)
	if err == nil {
		_, err = image.Seek(0, io.SeekStart)
	}
	if err != nil {
		return err
	}
	archive := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) {
		if err == nil {
			err = archive.WriteHeader(&tar.Header{Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatUSTAR})
		}
		if err == nil {
			_, err = io.Copy(archive, r)
		}
	}
	put(manifestName, int64(len(manifest)), bytes.NewReader(manifest))
	if key != nil {
		put(signatureName, ed25519.SignatureSize, bytes.NewReader(ed25519.Sign(key, manifest)))
	}
	put(imageName, size, image)
	if err == nil {
		err = archive.Close()
	}
	return err
}
