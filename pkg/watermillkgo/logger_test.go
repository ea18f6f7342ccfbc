package watermillkgo_test

import (
	"errors"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

func TestLogger(t *testing.T) {
	failure := errors.New("failure")
	capture := watermill.NewCaptureLogger()
	log := watermillkgo.NewLogger(capture, kgo.LogLevelDebug)
	if log.Level() != kgo.LogLevelDebug {
		t.Errorf("level %v, want debug", log.Level())
	}
	log.Log(kgo.LogLevelError, "e", "err", failure, "broker", 1)
	log.Log(kgo.LogLevelWarn, "w", "why", "x")
	log.Log(kgo.LogLevelInfo, "i")
	log.Log(kgo.LogLevelDebug, "d")
	log.Log(kgo.LogLevelNone, "n")
	for _, want := range []watermill.CapturedMessage{
		{Level: watermill.ErrorLogLevel, Msg: "e", Err: failure, Fields: watermill.LogFields{"component": "franz-go", "broker": 1}},
		{Level: watermill.InfoLogLevel, Msg: "w", Fields: watermill.LogFields{"component": "franz-go", "why": "x"}},
		{Level: watermill.DebugLogLevel, Msg: "i", Fields: watermill.LogFields{"component": "franz-go"}},
		{Level: watermill.TraceLogLevel, Msg: "d", Fields: watermill.LogFields{"component": "franz-go"}},
	} {
		if !capture.Has(want) {
			t.Errorf("%q was not logged as wanted: %v", want.Msg, capture.Captured())
		}
	}
}
