// Package seal keeps secrets sealed on topics: AES-256-GCM under a key that the
// topics' readers do not have, bound to what the secret belongs to.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
)

// Keyring seals with its first key and opens with any, so that keys can be
// changed: put the new one first, keep the old one until nothing is sealed with
// it.
type Keyring struct {
	first string
	keys  map[string]cipher.AEAD
	// vouch are the keys of Vouch, derived from the same.
	vouch [][]byte
}

// overhead is what sealing adds, in bytes: the nonce and the tag.
const overhead = 12 + 16

// NewKey returns a new random key in the form that Parse reads.
func NewKey(name string) string {
	key := make([]byte, 32)
	_, _ = rand.Read(key) // never fails, says its documentation
	return name + ":" + base64.StdEncoding.EncodeToString(key)
}

// Parse reads keys of the form "name:base64", separated by commas; each is 32
// bytes. Errors never contain a key.
func Parse(text string) (*Keyring, error) {
	k := &Keyring{keys: map[string]cipher.AEAD{}}
	for i, part := range strings.Split(text, ",") {
		name, encoded, ok := strings.Cut(strings.TrimSpace(part), ":")
		key, err := base64.StdEncoding.DecodeString(encoded)
		if !ok || name == "" || strings.Contains(name, ".") || err != nil || len(key) != 32 {
			return nil, fmt.Errorf("key %d is not of the form NAME:BASE64 with 32 bytes; make one with: webhooks keys new", i+1)
		}
		if k.keys[name] != nil {
			return nil, fmt.Errorf("key %d: there are two keys of the name %q", i+1, name)
		}
		block, err := aes.NewCipher(key)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		if k.keys[name], err = cipher.NewGCMWithRandomNonce(block); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		vouch, err := hkdf.Key(sha256.New, key, nil, "vouch", sha256.Size)
		if err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
		k.vouch = append(k.vouch, vouch)
		if i == 0 {
			k.first = name
		}
	}
	return k, nil
}

// Seal returns the secret of an owner in the form "name.base64".
func (k *Keyring) Seal(owner, secret string) string {
	sealed := k.keys[k.first].Seal(nil, nil, []byte(secret), []byte(owner))
	return k.first + "." + base64.RawStdEncoding.EncodeToString(sealed)
}

// Open returns what Seal sealed for the same owner.
func (k *Keyring) Open(owner, sealed string) (string, error) {
	name, encoded, ok := strings.Cut(sealed, ".")
	bytes, err := base64.RawStdEncoding.DecodeString(encoded)
	if !ok || err != nil || len(bytes) < overhead {
		// Whatever it is, it may be a secret in clear, and none of it is told.
		return "", errors.New("the sealed secret is not of the form NAME.BASE64")
	}
	aead := k.keys[name]
	if aead == nil {
		return "", fmt.Errorf("the secret is sealed with a key named %.40q, which SEALING_KEYS does not hold", name)
	}
	secret, err := aead.Open(nil, nil, bytes, []byte(owner))
	if err != nil {
		return "", errors.New("the sealed secret does not open: it was sealed with another key, or for another subscription")
	}
	return string(secret), nil
}

// Vouch returns a proof, of printable ASCII, that the parts come from somebody
// who has the keys. It holds a code for each, so that it is also understood
// where only the new or only the old ones are, while keys are changed.
func (k *Keyring) Vouch(parts ...[]byte) string {
	return strings.Join(k.codes(parts), ",")
}

// Vouched says whether the proof is what Vouch returned for the same parts, with
// one key at least that both have.
func (k *Keyring) Vouched(proof string, parts ...[]byte) bool {
	known := k.codes(parts)
	for one := range strings.SplitSeq(proof, ",") {
		for _, code := range known {
			if hmac.Equal([]byte(one), []byte(code)) {
				return true
			}
		}
	}
	return false
}

// codes authenticates the parts, and where each ends, with each key.
func (k *Keyring) codes(parts [][]byte) []string {
	codes := make([]string, len(k.vouch))
	for i, key := range k.vouch {
		mac := hmac.New(sha256.New, key)
		for _, p := range parts {
			mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(p))))
			mac.Write(p)
		}
		codes[i] = base64.RawStdEncoding.EncodeToString(mac.Sum(nil))
	}
	return codes
}
