package hook

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

const suffix = ".hook"

// record is the file of a hook that has begun. The keeper has it locked, and removes it at the end.
type record struct {
	Spec  Spec      `json:"spec"`
	Job   Job       `json:"job"`
	Since time.Time `json:"since"`
	// Done says that what runs after has run while nobody could be told; Words is how it failed.
	Done  bool   `json:"done,omitempty"`
	Words string `json:"words,omitempty"`
}

// write makes the record's file, durably: it is there before anything runs.
func (r *record) write(dir string) (path string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", err
	}
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return "", err
	}
	path = filepath.Join(dir, hex.EncodeToString(id[:])+suffix)
	return path, r.replace(path)
}

// replace writes the record at path, at once or not at all.
func (r *record) replace(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(path+".new", path)
	}
	return errors.Join(err, syncFolder(filepath.Dir(path)))
}

func syncFolder(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func read(path string) (*record, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

// lockPoll is between the tries to lock a record.
const lockPoll = 20 * time.Millisecond

// lock waits until no other keeper has the record; it is unlocked with the process. fs.ErrNotExist: it is over.
func lock(path string, limit time.Duration) (*os.File, error) {
	for until := time.Now().Add(limit); ; time.Sleep(lockPoll) {
		f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, err
		}
		if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
			return f, nil
		}
		_ = f.Close()
		if time.Now().After(until) {
			return nil, fmt.Errorf("%s is kept by another process: %w", path, err)
		}
	}
}

// remove ends the record.
func remove(path string) error {
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return errors.Join(err, syncFolder(filepath.Dir(path)), os.Remove(path+".lock"))
}
