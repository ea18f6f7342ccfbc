package app

import (
	"reflect"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/arsmedicatech/webhooks/internal/run"
)

// The embedded mode's defaults are those of the services' settings.
func TestEmbeddedDefaults(t *testing.T) {
	all := NewEmbedded(EmbeddedConfig{})
	for _, c := range []struct {
		settings, embedded run.Program
		fields             []string
	}{
		{&Appointments{}, all.Appointments, []string{"HandoverWait", "StatusRetention", "StatusPerSubscription"}},
		{&Router{}, all.Router, []string{"Ahead"}},
	} {
		parser, err := kong.New(c.settings, run.Options("test", "")...)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parser.Parse([]string{"--kafka-brokers=localhost:9092"}); err != nil {
			t.Fatal(err)
		}
		for _, field := range c.fields {
			want := reflect.ValueOf(c.settings).Elem().FieldByName(field).Interface()
			if got := reflect.ValueOf(c.embedded).Elem().FieldByName(field).Interface(); got != want {
				t.Errorf("%T.%s is %v embedded and %v as a service", c.settings, field, got, want)
			}
		}
	}
}
