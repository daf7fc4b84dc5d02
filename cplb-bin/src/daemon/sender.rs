//! The sending end of the event loop's channel, typed for one producer.

use std::fmt;
use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

/// Sends the events of one producer, which depends neither on the type that the loop receives nor on other producers.
pub(crate) struct EventSender<E>(Arc<dyn Fn(E) -> Delivery + Send + Sync>);

/// The result of sending an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    Sent,
    /// The loop has ended, and nothing receives events any more.
    Closed,
}

impl<E> EventSender<E> {
    /// A sender into the channel of all events.
    pub(crate) fn new<T: From<E> + Send + 'static>(channel: &UnboundedSender<T>) -> Self {
        let channel = channel.clone();
        Self(Arc::new(move |event| match channel.send(T::from(event)) {
            Ok(()) => Delivery::Sent,
            Err(_) => Delivery::Closed,
        }))
    }

    /// Sends an event. A producer that outlives the loop for a moment may ignore the result.
    pub(crate) fn send(&self, event: E) -> Delivery {
        (self.0)(event)
    }
}

impl<E> Clone for EventSender<E> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<E> fmt::Debug for EventSender<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSender")
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc::unbounded_channel;

    use super::*;

    #[test]
    fn producers_share_a_channel_and_see_when_it_is_closed() {
        #[derive(Debug, PartialEq, Eq)]
        enum All {
            Number(u8),
            Text(&'static str),
        }
        impl From<u8> for All {
            fn from(number: u8) -> Self {
                Self::Number(number)
            }
        }
        impl From<&'static str> for All {
            fn from(text: &'static str) -> Self {
                Self::Text(text)
            }
        }
        let (channel, mut events) = unbounded_channel::<All>();
        let (numbers, texts) = (EventSender::<u8>::new(&channel), EventSender::<&'static str>::new(&channel));
        assert_eq!((numbers.clone().send(1), texts.send("two")), (Delivery::Sent, Delivery::Sent));
        assert_eq!((events.try_recv(), events.try_recv()), (Ok(All::Number(1)), Ok(All::Text("two"))));
        drop(events);
        assert_eq!(numbers.send(3), Delivery::Closed);
    }
}
