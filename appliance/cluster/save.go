package cluster

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// A saved file is, in order: saveMagic; length of the head (4 bytes, big endian) and the head, JSON; the
// database as etcd saves it, with etcd's own sum at its end; SHA-256 of all before (32 bytes).
const (
	saveMagic   = "LUNAR SAVE 1\n"
	maxSaveHead = 1 << 20
	maxSaveBody = 4 * quotaBytes
)

// saveHead is what a saved file says of itself, with the secrets that the database needs.
type saveHead struct {
	Cluster  string    `json:"cluster"` // "": a node in no cluster
	Family   Family    `json:"family,omitempty"`
	Node     string    `json:"node"`
	Time     time.Time `json:"time"`
	Revision int64     `json:"revision"`
	Size     int64     `json:"size"`   // of the database
	Secret   []byte    `json:"secret"` // the key of sealed secrets, the CA's key among them
}

// Saved describes a saved file.
type Saved struct {
	Cluster  string // "": of a node in no cluster
	Node     string // that wrote it
	Time     time.Time
	Revision int64
	Bytes    int64 // of the file
}

// Save writes everything that the cluster's database knows, its secrets included, into a new file of mode
// 0600. It appears whole or not at all. ErrExists: there is such a file.
func (db *DB) Save(ctx context.Context, path string) (Saved, error) {
	saved, err := db.save(ctx, path)
	if err != nil {
		return saved, fmt.Errorf("cluster: save: %w", err)
	}
	return saved, nil
}

func (db *DB) save(ctx context.Context, path string) (Saved, error) {
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		if err == nil {
			err = fmt.Errorf("%s %w; give another name, or remove it", path, ErrExists)
		}
		return Saved{}, err
	}
	body, head, err := db.spool(ctx, filepath.Dir(path))
	if err != nil {
		return Saved{}, err
	}
	defer func() { _ = body.Close() }()
	temporary, err := os.CreateTemp(filepath.Dir(path), ".lunar-save-*") // mode 0600
	if err != nil {
		return Saved{}, err
	}
	defer func() { _ = os.Remove(temporary.Name()) }()
	err = writeSave(temporary, head, body)
	if err = errors.Join(err, temporary.Sync(), temporary.Close()); err != nil {
		return Saved{}, err
	}
	if err := os.Link(temporary.Name(), path); err != nil {
		return Saved{}, err
	}
	info, err := os.Stat(path)
	if err != nil {
		return Saved{}, err
	}
	return head.saved(info.Size()), syncDir(filepath.Dir(path))
}

func (h *saveHead) saved(size int64) Saved {
	return Saved{Cluster: h.Cluster, Node: h.Node, Time: h.Time, Revision: h.Revision, Bytes: size}
}

// spool keeps etcd's stream in a file without a name, since the head that goes before it has its size.
func (db *DB) spool(ctx context.Context, dir string) (*os.File, *saveHead, error) {
	head := &saveHead{Cluster: db.InCluster(), Family: db.Family(), Node: db.node, Time: time.Now().UTC(), Secret: db.vault.Load().key}
	count, err := db.client.Get(ctx, root, countUnder()...)
	if err != nil {
		return nil, nil, unavailable(err)
	}
	head.Revision = count.Header.Revision
	file, err := os.CreateTemp(dir, ".lunar-save-*")
	if err != nil {
		return nil, nil, err
	}
	err = os.Remove(file.Name())
	if err == nil {
		err = db.snapshot(ctx, file, head)
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, head, nil
}

func (db *DB) snapshot(ctx context.Context, file *os.File, head *saveHead) error {
	stream, err := db.client.Snapshot(ctx)
	if err != nil {
		return unavailable(err)
	}
	head.Size, err = io.Copy(file, stream)
	if err = errors.Join(err, stream.Close()); err != nil {
		return unavailable(err)
	}
	_, err = file.Seek(0, io.SeekStart)
	return err
}

func writeSave(w io.Writer, head *saveHead, body io.Reader) error {
	text, err := json.Marshal(head)
	if err != nil {
		return err
	}
	sum := sha256.New()
	both := bufio.NewWriter(io.MultiWriter(w, sum))
	front := binary.BigEndian.AppendUint32([]byte(saveMagic), uint32(len(text)))
	if _, err := both.Write(append(front, text...)); err != nil {
		return err
	}
	if _, err := io.CopyN(both, body, head.Size); err != nil {
		return err
	}
	if err := both.Flush(); err != nil {
		return err
	}
	_, err = w.Write(sum.Sum(nil))
	return err
}

// readSave checks a whole saved file and copies its database to body. ErrDamaged: it is none, or not
// what was written.
func readSave(r io.Reader, body io.Writer) (*saveHead, error) {
	sum := sha256.New()
	in := io.TeeReader(r, sum)
	head, err := readSaveHead(in)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	if _, err := io.CopyN(body, in, head.Size); err != nil {
		return nil, fmt.Errorf("%w: its database: %w", ErrDamaged, err)
	}
	return head, checkEnd(r, sum)
}

func checkEnd(r io.Reader, sum hash.Hash) error {
	end, err := io.ReadAll(io.LimitReader(r, sha256.Size+1))
	if err != nil {
		return err
	}
	if !bytes.Equal(end, sum.Sum(nil)) {
		return fmt.Errorf("%w: its check sum is wrong", ErrDamaged)
	}
	return nil
}

func readSaveHead(r io.Reader) (*saveHead, error) {
	front := make([]byte, len(saveMagic)+4)
	if _, err := io.ReadFull(r, front); err != nil || string(front[:len(saveMagic)]) != saveMagic {
		return nil, errors.New("it is not a file that `lunarctl cluster save` wrote")
	}
	size := binary.BigEndian.Uint32(front[len(saveMagic):])
	if size > maxSaveHead {
		return nil, fmt.Errorf("its head has %d bytes", size)
	}
	text := make([]byte, size)
	if _, err := io.ReadFull(r, text); err != nil {
		return nil, fmt.Errorf("its head: %w", err)
	}
	var head saveHead
	if err := json.Unmarshal(text, &head); err != nil {
		return nil, fmt.Errorf("its head: %w", err)
	}
	if head.Size < 0 || head.Size > maxSaveBody || len(head.Secret) != keyBytes {
		return nil, errors.New("its head makes no sense")
	}
	return &head, nil
}
