package watermillkgo_test

import (
	"context"
	"fmt"
	"log"
	"strings"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/arsmedicatech/webhooks/pkg/watermillkgo"
)

// A router handles orders and publishes receipts, each customer's in order.
func Example() {
	kafka, err := kfake.NewCluster(kfake.SeedTopics(6, "orders", "receipts")) // stands for yours
	if err != nil {
		log.Fatal(err)
	}
	defer kafka.Close()
	brokers := kafka.ListenAddrs()
	logger := watermill.NopLogger{}

	publisher, err := watermillkgo.NewPublisher(watermillkgo.PublisherConfig{
		Brokers: brokers,
		PartitionKey: func(_ string, msg *message.Message) ([]byte, error) {
			return []byte(msg.Metadata.Get("customer")), nil
		},
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	subscriber, err := watermillkgo.NewSubscriber(watermillkgo.SubscriberConfig{
		Brokers:       brokers,
		ConsumerGroup: "billing",
		MaxInFlight:   16, // of each partition, never two of one customer
	}, logger)
	if err != nil {
		log.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, logger)
	if err != nil {
		log.Fatal(err)
	}

	var handled sync.WaitGroup
	handled.Add(3)
	router.AddHandler("bill", "orders", subscriber, "receipts", publisher, func(msg *message.Message) ([]*message.Message, error) {
		defer handled.Done()
		fmt.Printf("%s ordered %s\n", msg.Metadata.Get("customer"), msg.Payload)
		receipt := msg.Copy()
		receipt.Payload = []byte(strings.ToUpper(string(msg.Payload)))
		return []*message.Message{receipt}, nil
	})

	for _, item := range []string{"bread", "cheese", "wine"} {
		order := message.NewMessage(watermill.NewUUID(), []byte(item))
		order.Metadata.Set("customer", "ada")
		if err := publisher.Publish("orders", order); err != nil {
			log.Fatal(err)
		}
	}
	go func() {
		handled.Wait()
		if err := router.Close(); err != nil {
			log.Print(err)
		}
	}()
	if err := router.Run(context.Background()); err != nil {
		log.Print(err)
	}
	// Output:
	// ada ordered bread
	// ada ordered cheese
	// ada ordered wine
}
