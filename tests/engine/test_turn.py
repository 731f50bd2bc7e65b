import asyncio

from headrace.engine.turn import Turn
from headrace.testing.loop import VirtualTimeLoop


def test_the_steps_of_a_turn_come_in_their_order():
    loop = VirtualTimeLoop()
    turn = Turn(loop)
    called = []

    def step(name, *then):
        def run():
            called.append(name)
            for kind, following in then:
                kind(step(following))

        return run

    turn.run(step("batch", (turn.write, "reply"), (turn.queue, "next of the sequence")))
    turn.write(step("write"))
    turn.queue(step("queue", (turn.run, "another batch")))
    turn.take(step("take", (turn.queue, "queue too"), (turn.take, "take in the next turn")))
    assert repr(turn) == "<Turn 1 to take, 1 to run, 1 to write>"
    loop.run_until_idle()
    assert called == [
        "take", "queue", "queue too", "write", "batch", "another batch", "reply",
        "take in the next turn", "next of the sequence",
    ]  # fmt: skip
    loop.close()


def test_a_step_that_fails_holds_up_no_other():
    loop = VirtualTimeLoop()
    errors, called = [], []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    turn = Turn(loop)
    turn.take(lambda: 1 / 0)
    turn.take(lambda: called.append(1))
    loop.run_until_idle()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert called == [1]
    loop.close()


def test_it_works_on_any_loop():
    async def main():
        done = asyncio.Event()
        Turn(asyncio.get_running_loop()).queue(done.set)
        await asyncio.wait_for(done.wait(), 10)

    asyncio.run(main())
