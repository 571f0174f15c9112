//! What an end does when its peer lies: the flow ends with the right reason, nothing panics, and
//! bytes that came before are not disturbed.

#![allow(clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use nowconnect_proto::flow::{Accepted, Ending, Side, Step};
use nowconnect_proto::frame::OpenMode;
use nowconnect_proto::{Flow, Reason};

const WINDOW: u32 = 16;

/// An origin whose target is connected, and which has sent `sent` bytes.
fn live(sent: usize) -> Flow {
    let mut flow = Flow::new(Side::Origin, WINDOW, 1024, 0);
    flow.attach_origin(1024, WINDOW);
    assert!(matches!(
        flow.next_step(1024, false),
        Some(Step::Open {
            mode: OpenMode::New,
            ..
        })
    ));
    flow.on_open_ack(0, 1024).expect("accepted");
    flow.push(Bytes::from(vec![7; sent]));
    while flow.next_step(1024, false).is_some() {}
    flow
}

fn inbox(flow: &Flow) -> Vec<u8> {
    flow.inbox()
        .chunks()
        .flat_map(|chunk| chunk.to_vec())
        .collect()
}

fn bytes(text: &'static str) -> Bytes {
    Bytes::from_static(text.as_bytes())
}

#[test]
fn an_overlap_is_cut_off_and_the_rest_taken() {
    let mut flow = live(0);
    assert_eq!(
        flow.on_data(0, bytes("abc")),
        Ok(Accepted {
            fresh: 3,
            duplicate: 0
        })
    );
    assert_eq!(
        flow.on_data(1, bytes("bcde")),
        Ok(Accepted {
            fresh: 2,
            duplicate: 2
        })
    );
    assert_eq!(
        flow.on_data(0, bytes("abcde")),
        Ok(Accepted {
            fresh: 0,
            duplicate: 5
        })
    );
    assert_eq!(inbox(&flow), b"abcde");
}

#[test]
fn a_gap_is_an_offence() {
    let mut flow = live(0);
    assert_eq!(flow.on_data(1, bytes("b")), Err(Reason::OffsetGap));
    assert_eq!(flow.on_fin(1), Err(Reason::OffsetGap));
}

#[test]
fn data_beyond_the_window_is_an_offence() {
    let mut flow = live(0);
    assert_eq!(
        flow.on_data(0, Bytes::from(vec![0; 17])),
        Err(Reason::BeyondCredit)
    );
    assert!(flow.on_data(0, Bytes::from(vec![0; 16])).is_ok());
    assert_eq!(flow.on_data(16, bytes("x")), Err(Reason::BeyondCredit));
    assert_eq!(
        flow.on_data(u64::MAX, bytes("x")),
        Err(Reason::ProtocolError)
    );
    flow.hand_on(16);
    assert!(matches!(
        flow.next_step(1024, false),
        Some(Step::Credit {
            acked: 16,
            limit: 32
        })
    ));
    assert!(flow.on_data(16, bytes("x")).is_ok());
}

#[test]
fn nothing_follows_a_fin() {
    let mut flow = live(0);
    flow.on_data(0, bytes("abc")).expect("fits");
    assert_eq!(flow.on_fin(2), Err(Reason::ProtocolError));
    assert_eq!(flow.on_fin(3), Ok(()));
    assert_eq!(flow.on_fin(3), Ok(()));
    assert_eq!(flow.on_fin(4), Err(Reason::AfterFin));
    assert_eq!(flow.on_data(3, bytes("d")), Err(Reason::AfterFin));
    assert!(
        flow.on_data(0, bytes("abc")).is_ok(),
        "a repetition is none"
    );
}

#[test]
fn bytes_never_sent_cannot_be_acknowledged() {
    let mut flow = live(10);
    assert_eq!(flow.on_credit(11, 2000), Err(Reason::BadAck));
    assert_eq!(flow.on_credit(4, 2000), Ok(()));
    assert_eq!(flow.on_credit(3, 1000), Ok(()), "a late credit is ignored");
    assert_eq!(flow.held(), 6);
    flow.push_fin();
    assert_eq!(
        flow.on_credit(11, 2000),
        Err(Reason::BadAck),
        "the FIN was not sent yet"
    );
    assert_eq!(flow.next_step(1024, false), Some(Step::Fin { offset: 10 }));
    assert_eq!(flow.on_credit(11, 2000), Ok(()));
    assert_eq!(flow.held(), 0);
}

#[test]
fn a_resume_cannot_claim_or_deny_what_was_settled() {
    for (received, result) in [
        (3, Err(Reason::BadAck)),
        (4, Ok(())),
        (10, Ok(())),
        (11, Err(Reason::BadAck)),
    ] {
        let mut flow = live(10);
        flow.on_credit(4, 1024).expect("fits");
        flow.detach();
        flow.attach_origin(1024, WINDOW);
        assert!(matches!(
            flow.next_step(1024, false),
            Some(Step::Open {
                mode: OpenMode::Resume,
                ..
            })
        ));
        assert_eq!(
            flow.next_step(1024, false),
            None,
            "no data before the answer"
        );
        assert_eq!(flow.on_open_ack(received, 1024), result);
    }
}

#[test]
fn a_peer_may_acknowledge_more_than_it_said_it_had() {
    let mut flow = live(10);
    flow.detach();
    flow.attach_origin(1024, WINDOW);
    flow.next_step(1024, false);
    flow.on_open_ack(2, 1024).expect("resumed");
    // It asked for what follows the second byte, and then acknowledges eight.
    flow.on_credit(8, 1024).expect("fits");
    while let Some(step) = flow.next_step(1024, true) {
        if let Step::Data { offset, payload } = step {
            assert_eq!((offset, payload.len()), (8, 2));
        }
    }
}

#[test]
fn an_answer_nobody_waits_for_is_an_offence() {
    let mut flow = live(0);
    assert_eq!(flow.on_open_ack(0, 1024), Err(Reason::ProtocolError));
    assert_eq!(flow.on_refuse(), Err(Reason::ProtocolError));
    assert!(
        !flow.rewind(),
        "an accepted flow is never offered to another agent"
    );
}

#[test]
fn a_flow_whose_end_was_told_or_taken_is_not_offered_to_another_agent() {
    for tells in [true, false] {
        let mut flow = Flow::new(Side::Origin, WINDOW, 1024, 0);
        flow.attach_origin(1024, WINDOW);
        flow.push_fin();
        while flow.next_step(1024, false).is_some() {}
        let said = match tells {
            true => flow.on_fin(0),
            false => flow.on_credit(1, 1024),
        };
        assert_eq!((said, flow.on_refuse()), (Ok(()), Ok(())));
        assert!(!flow.rewind(), "what one agent said is not unsaid");
    }
}

#[test]
fn after_the_end_everything_is_ignored() {
    let mut flow = live(10);
    flow.abort(Reason::IdleTimeout);
    assert_eq!(flow.on_data(99, bytes("x")), Ok(Accepted::default()));
    assert_eq!(flow.on_credit(99, 99), Ok(()));
    assert_eq!(flow.on_fin(99), Ok(()));
    assert_eq!(
        flow.next_step(1024, true),
        Some(Step::Rst {
            reason: Reason::IdleTimeout
        })
    );
    assert!(!flow.is_over() && flow.next_step(1024, true).is_none());
    assert_eq!((flow.held(), flow.room()), (0, 0));
    flow.on_rst(Reason::UnknownFlow);
    assert!(flow.is_over() && flow.next_step(1024, true).is_none());
    assert_eq!(flow.ending(), Some(Ending::Local(Reason::IdleTimeout)));
    flow.on_rst(Reason::SocketReset);
    assert_eq!(
        flow.next_step(1024, true),
        rst(Reason::UnknownFlow),
        "whoever asks is answered"
    );
    assert!(flow.is_over() && flow.next_step(1024, true).is_none());
}

fn rst(reason: Reason) -> Option<Step> {
    Some(Step::Rst { reason })
}

#[test]
fn a_reset_is_confirmed_unless_it_says_that_the_flow_is_not_known() {
    let mut flow = live(10);
    flow.on_rst(Reason::SocketReset);
    assert!(!flow.is_over() && flow.has_step());
    assert_eq!(flow.next_step(0, false), rst(Reason::UnknownFlow));
    assert!(flow.is_over() && !flow.has_step());
    let mut flow = live(10);
    flow.on_rst(Reason::UnknownFlow);
    assert!(flow.is_over() && !flow.has_step());
}

#[test]
fn a_reset_is_repeated_on_the_next_path_until_it_is_confirmed() {
    let mut flow = live(10);
    flow.abort(Reason::IdleTimeout);
    for _ in 0..2 {
        assert_eq!(flow.next_step(0, false), rst(Reason::IdleTimeout));
        flow.detach();
        assert!(!flow.is_over());
        flow.attach_origin(0, 1024);
        let open = flow.next_step(0, false);
        assert!(matches!(
            open,
            Some(Step::Open {
                mode: OpenMode::Resume,
                ..
            })
        ));
    }
    assert_eq!(flow.on_refuse(), Ok(()));
    flow.refused(Reason::UnknownFlow);
    assert!(flow.is_over());
}

#[test]
fn where_both_ends_reset_at_once_each_sends_one_reset() {
    let mut flow = live(10);
    flow.abort(Reason::IdleTimeout);
    flow.on_rst(Reason::SocketReset);
    assert!(!flow.is_over(), "the other end waits for a word");
    assert!(flow.next_step(0, false).is_some() && flow.is_over());
    let mut flow = live(10);
    flow.abort(Reason::IdleTimeout);
    assert_eq!(flow.next_step(0, false), rst(Reason::IdleTimeout));
    flow.on_rst(Reason::SocketReset);
    assert!(flow.is_over() && !flow.has_step());
}

#[test]
fn nothing_is_confirmed_where_the_peer_does_not_do_so() {
    let mut flow = live(10);
    flow.set_echoes(false);
    flow.on_rst(Reason::SocketReset);
    assert!(flow.is_over());
    let mut flow = live(10);
    flow.set_echoes(false);
    flow.abort(Reason::IdleTimeout);
    assert!(!flow.is_over());
    assert_eq!(flow.next_step(0, false), rst(Reason::IdleTimeout));
    assert!(flow.is_over());
}
