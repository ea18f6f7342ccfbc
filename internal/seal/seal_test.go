package seal_test

import (
	"encoding/base64"
	"strings"
	"testing"

	"github.com/arsmedicatech/webhooks/internal/seal"
)

const owner = "webhook_subscription:1"

func keyring(t *testing.T, text string) *seal.Keyring {
	t.Helper()
	k, err := seal.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestRoundTrip(t *testing.T) {
	k := keyring(t, seal.NewKey("a"))
	for _, secret := range []string{"s", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", strings.Repeat("x", 512), "\x00\xff"} {
		sealed := k.Seal(owner, secret)
		if got, err := k.Open(owner, sealed); err != nil || got != secret {
			t.Errorf("%q opens as %q (%v)", secret, got, err)
		}
		if strings.Contains(sealed, secret) && len(secret) > 1 {
			t.Errorf("%q is in clear in %q", secret, sealed)
		}
		if again := k.Seal(owner, secret); again == sealed {
			t.Error("sealed twice, it looks the same")
		}
	}
}

func TestRotation(t *testing.T) {
	old, young := seal.NewKey("old"), seal.NewKey("young")
	sealed := keyring(t, old).Seal(owner, "secret")
	both := keyring(t, young+", "+old)
	if got, err := both.Open(owner, sealed); err != nil || got != "secret" {
		t.Errorf("with both keys: %q, %v", got, err)
	}
	again := both.Seal(owner, "secret")
	if !strings.HasPrefix(again, "young.") {
		t.Errorf("sealed anew as %q, want the first key's", again)
	}
	if got, err := keyring(t, young).Open(owner, again); err != nil || got != "secret" {
		t.Errorf("with the young key alone: %q, %v", got, err)
	}
}

func TestRefusesToOpen(t *testing.T) {
	key, secret := seal.NewKey("a"), "very-secret-indeed"
	k := keyring(t, key)
	sealed := k.Seal(owner, secret)
	raw, err := base64.RawStdEncoding.DecodeString(strings.TrimPrefix(sealed, "a."))
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1
	for name, c := range map[string]struct {
		k             *seal.Keyring
		owner, sealed string
	}{
		"another owner":           {k, "webhook_subscription:2", sealed},
		"another key's name":      {keyring(t, seal.NewKey("b")), owner, sealed},
		"another key, same name":  {keyring(t, seal.NewKey("a")), owner, sealed},
		"changed":                 {k, owner, "a." + base64.RawStdEncoding.EncodeToString(raw)},
		"cut":                     {k, owner, sealed[:len(sealed)-8]},
		"empty":                   {k, owner, ""},
		"no base64":               {k, owner, "a.!"},
		"name alone":              {k, owner, "a."},
		"in clear":                {k, owner, secret},
		"in clear, with a dot":    {k, owner, secret + ".com"},
		"in clear, dot and space": {k, owner, secret + ". "},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.k.Open(c.owner, c.sealed)
			if err == nil || got != "" {
				t.Fatalf("opens as %q (%v)", got, err)
			}
			told := err.Error()
			if _, key, _ := strings.Cut(key, ":"); strings.Contains(told, key) || strings.Contains(told, secret) {
				t.Errorf("the error tells: %s", told)
			}
		})
	}
}

func TestMalformedKeys(t *testing.T) {
	good := seal.NewKey("a")
	name, encoded, _ := strings.Cut(good, ":")
	for what, text := range map[string]string{
		"empty":           "",
		"no name":         ":" + encoded,
		"name alone":      name,
		"key alone":       encoded,
		"dot in the name": "a.b:" + encoded,
		"no base64":       "a:" + encoded[:20] + "!" + encoded[20:],
		"short":           "a:" + base64.StdEncoding.EncodeToString(make([]byte, 16)),
		"long":            "a:" + base64.StdEncoding.EncodeToString(make([]byte, 33)),
		"trailing comma":  good + ",",
		"same name":       good + "," + seal.NewKey("a"),
		"swapped":         encoded + ":a",
	} {
		t.Run(what, func(t *testing.T) {
			_, err := seal.Parse(text)
			if err == nil {
				t.Fatal("accepted")
			}
			if strings.Contains(err.Error(), encoded) || strings.Contains(err.Error(), encoded[:12]) {
				t.Errorf("the error tells the key: %v", err)
			}
		})
	}
}

func TestVouch(t *testing.T) {
	old, young := seal.NewKey("old"), seal.NewKey("young")
	parts := func(texts ...string) (all [][]byte) {
		for _, text := range texts {
			all = append(all, []byte(text))
		}
		return all
	}
	proof := keyring(t, young+","+old).Vouch(parts("id", "body")...)
	for name, c := range map[string]struct {
		k     *seal.Keyring
		proof string
		parts [][]byte
		want  bool
	}{
		"both keys":        {keyring(t, old+","+young), proof, parts("id", "body"), true},
		"old key":          {keyring(t, old), proof, parts("id", "body"), true},
		"young key":        {keyring(t, young), proof, parts("id", "body"), true},
		"another key":      {keyring(t, seal.NewKey("old")), proof, parts("id", "body"), false},
		"another part":     {keyring(t, old), proof, parts("id", "Body"), false},
		"fewer parts":      {keyring(t, old), proof, parts("id"), false},
		"parts elsewhere":  {keyring(t, old), proof, parts("idb", "ody"), false},
		"no proof":         {keyring(t, old), "", parts("id", "body"), false},
		"a cut proof":      {keyring(t, young), proof[:20], parts("id", "body"), false},
		"proof of nothing": {keyring(t, old), keyring(t, old).Vouch(), parts("id", "body"), false},
	} {
		if got := c.k.Vouched(c.proof, c.parts...); got != c.want {
			t.Errorf("%s: vouched is %v, want %v", name, got, c.want)
		}
	}
}
