// Package schemas holds the JSON Schemas (draft 2020-12) of what this system
// writes: one for the value of each topic, and one for the body of a webhook.
// The files are for everyone; the functions are for tests and tools that check
// a value against them.
package schemas

import (
	"bytes"
	"embed"
	"fmt"
	"io/fs"
	"strings"
	"sync"

	"github.com/santhosh-tekuri/jsonschema/v6"
)

// Files holds the schemas, one file each.
//
//go:embed *.schema.json
var Files embed.FS

const (
	eventFile        = "appointment-event.schema.json"
	bodyFile         = "webhook-body.schema.json"
	deliveryFile     = "webhook-delivery.schema.json"
	subscriptionFile = "webhook-subscription.schema.json"
	attemptFile      = "webhook-attempt.schema.json"
	deadLetterFile   = "webhook-dead-letter.schema.json"
	replayFile       = "webhook-replay.schema.json"

	subscriptions = "webhooks.subscriptions"
	replays       = "webhooks.replays"
)

// Validate checks the value of a record of a topic, which is named without the
// deployment's prefix. A tombstone of the subscriptions or the replays is valid.
// Errors quote the value: they are for tests and tools, not for logs.
func Validate(topic string, value []byte) error {
	if (topic == subscriptions || topic == replays) && value == nil {
		return nil
	}
	file, ok := fileOf(topic)
	if !ok {
		return fmt.Errorf("topic %s has no schema", topic)
	}
	return validate(file, value)
}

func fileOf(topic string) (string, bool) {
	switch {
	case topic == "appointments.events":
		return eventFile, true
	case topic == subscriptions:
		return subscriptionFile, true
	case topic == "webhooks.deliveries", topic == "webhooks.parked", topic == "webhooks.backfill", strings.HasPrefix(topic, "webhooks.retry."):
		return deliveryFile, true
	case topic == "webhooks.attempts":
		return attemptFile, true
	case topic == "webhooks.dead-letters":
		return deadLetterFile, true
	case topic == replays:
		return replayFile, true
	}
	return "", false
}

// ValidateEvent checks the value of an event of a type, which is in its record's
// header ce_type, more closely than Validate can. It fails for a type that the
// schema does not know.
func ValidateEvent(eventType string, value []byte) error {
	return validate(eventFile+"#/$defs/"+eventType, value)
}

// ValidateBody checks the body of a webhook.
func ValidateBody(body []byte) error { return validate(bodyFile, body) }

// compiler makes each schema when it is first asked for. It is not safe for
// concurrent use by itself.
var (
	mu       sync.Mutex
	compiler *jsonschema.Compiler
)

func compiled(location string) (*jsonschema.Schema, error) {
	mu.Lock()
	defer mu.Unlock()
	if compiler == nil {
		c, err := load()
		if err != nil {
			return nil, err
		}
		compiler = c
	}
	schema, err := compiler.Compile(base + location)
	if err != nil {
		return nil, fmt.Errorf("compile %s: %w", location, err)
	}
	return schema, nil
}

// base is what the files' $id begin with.
const base = "https://github.com/arsmedicatech/webhooks/schemas/"

func load() (*jsonschema.Compiler, error) {
	c := jsonschema.NewCompiler()
	c.AssertFormat()
	c.AssertContent()
	names, err := fs.Glob(Files, "*.schema.json")
	if err != nil {
		return nil, fmt.Errorf("list schemas: %w", err)
	}
	for _, name := range names {
		text, err := Files.ReadFile(name)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", name, err)
		}
		if err := c.AddResource(base+name, doc); err != nil {
			return nil, fmt.Errorf("add %s: %w", name, err)
		}
	}
	return c, nil
}

func validate(location string, value []byte) error {
	schema, err := compiled(location)
	if err != nil {
		return err
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(value))
	if err != nil {
		return fmt.Errorf("the value is not JSON: %w", err)
	}
	if err := schema.Validate(doc); err != nil {
		return fmt.Errorf("not as %s says: %w", location, err)
	}
	return nil
}
