package watermillkgo

import (
	"errors"
	"fmt"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Logger lets franz-go log to Watermill. It is what the Publisher and the
// Subscriber set unless ClientOptions hold another.
type Logger struct {
	to    watermill.LoggerAdapter
	level kgo.LogLevel
}

// NewLogger makes a Logger that passes on what is of the level or graver.
// franz-go's warnings become Info, its information Debug, its debugging Trace.
func NewLogger(to watermill.LoggerAdapter, level kgo.LogLevel) *Logger {
	return &Logger{to: to, level: level}
}

// Level implements kgo.Logger.
func (l *Logger) Level() kgo.LogLevel { return l.level }

// Log implements kgo.Logger.
func (l *Logger) Log(level kgo.LogLevel, msg string, keyvals ...any) {
	fields := watermill.LogFields{"component": "franz-go"}
	for i := 0; i+1 < len(keyvals); i += 2 {
		fields[fmt.Sprint(keyvals[i])] = keyvals[i+1]
	}
	switch level {
	case kgo.LogLevelNone:
	case kgo.LogLevelError:
		err, ok := fields["err"].(error)
		if !ok {
			err = errors.New(msg)
		}
		delete(fields, "err")
		l.to.Error(msg, err, fields)
	case kgo.LogLevelWarn:
		l.to.Info(msg, fields)
	case kgo.LogLevelInfo:
		l.to.Debug(msg, fields)
	case kgo.LogLevelDebug:
		l.to.Trace(msg, fields)
	}
}
