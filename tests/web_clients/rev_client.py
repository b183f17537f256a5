"""revChatGPT's V1.Chatbot, unmodified, before an address: `rev_client.py talk|read URL KEY [COUNT]`, results as JSON.

Run by the Python that has revChatGPT. `talk` is what its users do with a conversation; `read` asks COUNT questions and
gives the answers' texts.
"""

import json
import sys
from typing import Any

from revChatGPT.typings import Error
from revChatGPT.V1 import Chatbot

FIRST = "Grüße \"you\" and 'me' \\ 你好 🙂"


def code_of(call: Any, *arguments: Any, **options: Any) -> int:
    """The code of the error that a call raises; 0 where it raises none."""
    try:
        found = call(*arguments, **options)
        if hasattr(found, "__next__"):
            list(found)
    except Error as error:
        return int(getattr(error.code, "value", error.code))
    return 0


def talk(url: str, key: str) -> dict[str, Any]:
    bot = Chatbot({"access_token": key}, base_url=url)
    steps: dict[str, Any] = {"pieces": list(bot.ask(FIRST))}
    first = steps["pieces"][-1]
    place = first["conversation_id"]
    steps["second"] = list(bot.ask("two"))[-1]
    steps["branch"] = list(
        bot.ask("other", conversation_id=place, parent_id=first["parent_id"])
    )[-1]
    bot.rollback_conversation(1)
    steps["rolled back"] = list(bot.ask("third"))[-1]
    steps["continued"] = list(bot.continue_write())[-1]
    steps["history"] = bot.get_msg_history(place)
    steps["listed"] = bot.get_conversations(offset=0, limit=20)
    steps["found title"] = bot.gen_title(place, first["parent_id"])
    bot.change_title(place, "Ein Titel — 你好")
    steps["renamed"] = bot.get_conversations()[0]["title"]
    steps["unknown"] = code_of(bot.get_msg_history, first["parent_id"])
    steps["too many"] = code_of(bot.get_conversations, limit=101)
    bot.reset_chat()
    steps["new"] = list(bot.ask("anew"))[-1]
    steps["cut"] = code_of(bot.ask, "offline:cut now")
    newcomer = Chatbot({"access_token": key}, base_url=url, conversation_id=place)
    steps["resumed"] = list(newcomer.ask("resumed"))[-1]
    bot.delete_conversation(place)
    steps["deleted"] = code_of(bot.get_msg_history, place)
    bot.clear_conversations()
    steps["cleared"] = bot.get_conversations()
    silent = Chatbot({"access_token": key, "disable_history": True}, base_url=url)
    steps["not kept"] = list(silent.ask("secret"))[-1]
    steps["still cleared"] = bot.get_conversations()
    return steps


def read(url: str, key: str, count: int) -> list[str]:
    bot = Chatbot({"access_token": key}, base_url=url)
    return [list(bot.ask(str(number)))[-1]["message"] for number in range(count)]


if __name__ == "__main__":
    task, url, key = sys.argv[1:4]
    result = talk(url, key) if task == "talk" else read(url, key, int(sys.argv[4]))
    print(json.dumps(result))
