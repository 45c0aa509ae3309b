//! Conversations that do not fit.

use super::{ChatRequest, Message, Role};

/// Leaves out the oldest turns, up to a user's, until they held `num_bytes`; system messages and the last turn stay. False
/// when nothing can be left out.
pub(super) fn drop_oldest(messages: &mut Vec<Message>, num_bytes: usize) -> bool {
    let Some(last_user) = messages.iter().rposition(|message| message.role == Role::User) else { return false };
    let mut num_dropped = 0;
    let mut index = 0;
    let mut drops = false;
    messages.retain(|message| {
        let begins_turn = message.role == Role::User;
        if begins_turn || index == 0 {
            drops = num_dropped < num_bytes.max(1) && index < last_user;
        }
        index += 1;
        let stays = message.role == Role::System || !drops;
        if !stays {
            num_dropped += num_bytes_of(message).max(1);
        }
        stays
    });
    0 < num_dropped
}

/// Tokens that a prompt may have, so that there is room for a reply.
pub(super) fn max_prompt_tokens(request: &ChatRequest, context_tokens: usize) -> usize {
    const USUAL_REPLY: usize = 512;
    let reply = request.max_output_tokens.map_or(USUAL_REPLY, |max| max.get() as usize);
    context_tokens.saturating_sub(reply.min(context_tokens / 2)).saturating_sub(1)
}

fn num_bytes_of(message: &Message) -> usize {
    let calls: usize = message.tool_calls.iter().map(|call| call.name.len() + call.arguments.len()).sum();
    message.content.len() + message.reasoning.as_ref().map_or(0, String::len) + calls
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(messages: &[Message]) -> String {
        messages.iter().map(|message| message.content.as_str()).collect()
    }

    #[test]
    fn whole_turns_go_and_the_last_one_and_system_messages_stay() {
        let roles = [Role::System, Role::User, Role::Assistant, Role::Tool, Role::User, Role::Assistant, Role::User];
        let mut messages: Vec<Message> =
            roles.into_iter().zip("abcdefg".chars()).map(|(role, text)| Message::text(role, text)).collect();
        assert!(drop_oldest(&mut messages, 1));
        assert_eq!(contents(&messages), "aefg");
        assert!(drop_oldest(&mut messages, 1000));
        assert_eq!(contents(&messages), "ag");
        assert!(!drop_oldest(&mut messages, 1000));
        assert_eq!(contents(&messages), "ag");
    }

    #[test]
    fn what_comes_before_the_first_user_goes_too() {
        let roles = [Role::Assistant, Role::Assistant, Role::User];
        let mut messages: Vec<Message> = roles.into_iter().map(|role| Message::text(role, "x")).collect();
        assert!(drop_oldest(&mut messages, 1));
        assert_eq!(messages.len(), 1);
    }
}
